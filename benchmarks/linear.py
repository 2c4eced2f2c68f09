"""One linear layer on the CPU, forward and both gradients: sparse kernels against dense torch and torch.sparse CSR.

    python -m benchmarks.linear [--density 0.5 0.2 ...] [--batch 64] [--threads 1] [--csv FILE]

As `benchmarks.layers`: contenders take turns, medians, ratios to dense fp32 torch.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.layers import PASSES, Calls, Contender
from benchmarks.layers_summary import DENSITIES
from benchmarks.results import Row, header, write_csv
from fedsparse.ops.algebra import FAMILIES
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

SHAPES = [(512, 512), (1024, 4096)]


def calls(name: str, topology: Topology, values: torch.Tensor, x: torch.Tensor, gy: torch.Tensor) -> Calls:
    """The three passes of a back end of ours."""
    products, index = FAMILIES["linear"][name], Index.of(topology)
    return {
        "forward": lambda: products.product(values, index, x, None, ()),
        "input": lambda: products.transposed(values, index, gy, ()),
        "weight": lambda: products.sampled(index, gy, x, ()),
    }


def dense(weight: torch.Tensor, x: torch.Tensor, gy: torch.Tensor) -> Calls:
    """torch's matrix products."""
    return {"forward": lambda: x @ weight.T, "input": lambda: gy @ weight, "weight": lambda: gy.T @ x}


def csr(topology: Topology, values: torch.Tensor, x: torch.Tensor, gy: torch.Tensor) -> Calls:
    """torch.sparse CSR, the transpose made beforehand."""
    shape = (topology.rows, topology.channels)
    topology = Topology.from_flat(topology.flat(), shape)  # a list for every row
    weight = torch.sparse_csr_tensor(topology.indptr, topology.cols, values, shape)
    transposed = topology.unpack(values).T.to_sparse_csr()
    pattern = torch.sparse_csr_tensor(topology.indptr, topology.cols, torch.zeros_like(values), shape)
    return {
        "forward": lambda: (weight @ x.T).T.contiguous(),
        "input": lambda: (transposed @ gy.T).T.contiguous(),
        "weight": lambda: torch.sparse.sampled_addmm(pattern, gy.T, x).values(),
    }


def check(found: Calls, expected: Calls, topology: Topology) -> None:
    """AssertionError where a pass is not the dense one up to rounding."""
    for name in PASSES:
        right = expected[name]()
        right = topology.pack(right) if name == "weight" else right
        error = float((found[name]() - right).abs().max() / right.abs().max().clamp(min=1e-9))
        assert error < 1e-5, f"{name} is wrong: relative error {error:.1e}"


def contenders(shape: tuple[int, int], densities: list[float], batch: int) -> list[Contender]:
    """Everyone of one shape."""
    generator = torch.Generator().manual_seed(0)
    x, gy = torch.randn(batch, shape[1], generator=generator), torch.randn(batch, shape[0], generator=generator)
    found = [Contender("dense fp32", dense(torch.randn(shape), x, gy), None)]
    for density in densities:
        for name, v in (("sparse", 1), ("sparse V16", 16)):
            groups = torch.rand(shape[0] // v, shape[1], generator=generator) < density
            topology = Topology.from_mask(groups.repeat_interleave(v, 0), v)
            values = torch.randn(topology.nnz, generator=generator)
            ours = calls("cpu", topology, values, x, gy)
            check(ours, dense(topology.unpack(values), x, gy), topology)
            found.append(Contender(name, ours, density))
            if v == 1:
                found.append(Contender("torch.sparse CSR", csr(topology, values, x, gy), density))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(header(f"linear layers, batch {args.batch}"))
    print(f"shape      density  {'who':18}{''.join(f'{name:>10}' for name in PASSES)}   total ms   ratio")
    rows: list[Row] = []
    for shape in SHAPES:
        everybody = contenders(shape, args.density, args.batch)
        for turn in range(args.rounds + 2):
            for c in everybody:
                c.run(warm_up=turn < 2)
        best = everybody[0].total
        for c in everybody:
            cells = "".join(f"{c.milliseconds(name):10.3f}" for name in PASSES)
            share = "" if c.density is None else f"{c.density:.0%}"
            text = f"{shape[0]}x{shape[1]}"
            print(f"{text:11}{share:>7}  {c.name:18}{cells} {c.total:10.3f} {best / c.total:7.2f}")
            times = {f"{name}_ms": c.milliseconds(name) for name in PASSES}
            rows.append({"layer": text, "density": c.density, "who": c.name, **times, "over_dense": best / c.total})
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
