"""Up to which density the sparse CPU kernels win against dense torch, pass by pass: the table that `dispatch` ships.

    python -m benchmarks.crossovers [--write] [--batch 64] [--seconds 0.1]

For each kind of layer (several shapes), masks of single weights and strips of 16, and each pass, sparse kernels and
dense torch are timed in turn at rising densities, through the very functions that `dispatch` chooses among; the
crossover is the last density at which sparse is faster, the least one over the shapes. With --write the table of this
instruction set goes into fedsparse/ops/crossovers.json with the machine's name. One thread, thread CPU time, least of
the calls; float32.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.ops import dispatch
from fedsparse.ops.algebra import FAMILIES, Products
from fedsparse.ops.blocked_conv2d import _outside, _within
from fedsparse.ops.index import Index
from fedsparse.ops.load import compiled
from fedsparse.ops.times import processor
from fedsparse.topology import Topology

DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STRIP = 16
# kind: (rows, channels, kernel, stride, map) of its shapes
CONVOLUTIONS = {
    "few kxk": [(64, 3, 3, 1, 32), (16, 3, 3, 1, 32)],
    "few kxk strided": [(64, 3, 3, 2, 32)],
    "few 1x1": [(32, 8, 1, 1, 16)],
    "few 1x1 strided": [(32, 8, 1, 2, 16)],
    "kxk": [(64, 64, 3, 1, 32), (128, 128, 3, 1, 16), (512, 512, 3, 1, 4), (32, 32, 3, 1, 8)],
    "kxk strided": [(128, 64, 3, 2, 32), (512, 256, 3, 2, 8)],
    "1x1": [(128, 128, 1, 1, 16), (64, 256, 1, 1, 8)],
    "1x1 strided": [(128, 64, 1, 2, 32), (512, 256, 1, 2, 8)],
}
LINEAR = [(512, 512), (128, 784)]
Calls = dict[str, Callable[[], Tensor]]


def calls(products: Products, v: Tensor, index: Index, x: Tensor, gy: Tensor, geometry: tuple) -> Calls:
    """The three passes of one back end."""
    return {
        "product": lambda: products.product(v, index, x, None, geometry),
        "transposed": lambda: products.transposed(v, index, gy, geometry),
        "sampled": lambda: products.sampled(index, gy, x, geometry),
    }


def mask(shape: tuple[int, ...], density: float, strip: int) -> Tensor:
    """A random mask; with strip V, V rows at a time share their columns."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape[0] // strip, *shape[1:], generator=generator) < density).repeat_interleave(strip, 0)


def least(call: Callable[[], Tensor], seconds: float) -> float:
    """Least thread time of a call, in milliseconds, over about `seconds`."""
    best, end = dispatch.milliseconds(call, 1), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, dispatch.milliseconds(call, 1))
    return best


def crossings(make: Callable[[float], dict[str, tuple[Calls, Calls]]], seconds: float) -> dict[str, float]:
    """Last density at which sparse wins, by "family pass"; `make` gives (sparse, dense) calls by family."""
    found: dict[str, float] = {}
    lost: set[str] = set()
    for density in DENSITIES:
        for family, (sparse, dense) in make(density).items():
            for name in sparse:
                which = f"{family} {name}"
                if which in lost:
                    continue
                if least(sparse[name], seconds) <= least(dense[name], seconds):
                    found[which] = density
                else:
                    found.setdefault(which, 0.0)
                    lost.add(which)
    return found


def convolution(shape: tuple[int, int, int, int, int], batch: int, strip: int, density: float) -> dict:
    """(sparse, dense) calls of the two layouts."""
    rows, channels, kernel, stride, size = shape
    topology = Topology.from_mask(mask((rows, channels, kernel, kernel), density, strip))
    index, values, pad = Index.of(topology), torch.randn(topology.nnz), kernel // 2
    geometry = ((kernel, kernel), (stride, stride), (pad, pad), (1, 1), (size, size))
    x = torch.randn(batch, channels, size, size)
    gy = torch.randn_like(FAMILIES["conv2d"]["dense"].product(values, index, x, None, geometry))
    blocks = ops.to_blocked(x), ops.to_blocked(gy)
    family = FAMILIES["conv2d"]
    return {
        "conv2d": tuple(calls(family[name], values, index, x, gy, geometry) for name in ("cpu", "dense")),
        "blocked_conv2d": tuple(calls(make(batch), values, index, *blocks, geometry) for make in (_within, _outside)),
    }


def linear(shape: tuple[int, int], batch: int, strip: int, density: float) -> dict:
    """(sparse, dense) calls of a linear layer."""
    topology = Topology.from_mask(mask(shape, density, strip))
    operands = torch.randn(topology.nnz), Index.of(topology), torch.randn(batch, shape[1]), torch.randn(batch, shape[0])
    return {"linear": tuple(calls(FAMILIES["linear"][name], *operands, ()) for name in ("cpu", "dense"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, float]]] = {}
    kinds = {"linear": [(linear, shape) for shape in LINEAR]}
    kinds |= {kind: [(convolution, shape) for shape in shapes] for kind, shapes in CONVOLUTIONS.items()}
    for kind, shapes in kinds.items():
        for name, strip in (("single", 1), ("strips", STRIP)):
            for build, shape in shapes:
                found = crossings(lambda d, s=shape, v=strip, b=build: b(s, args.batch, v, d), args.seconds)
                for which, density in found.items():
                    row = table.setdefault(which, {}).setdefault(kind, {})
                    row[name] = min(row.get(name, 1.0), density)
                cells = ", ".join(f"{which} {density:.0%}" for which, density in found.items())
                print(f"{kind} {shape}, {name}: {cells}", flush=True)
    if args.write:
        isa = str(compiled()["instruction_set_chosen"])
        known = json.loads(dispatch.CROSSOVERS.read_text()) if dispatch.CROSSOVERS.exists() else {}
        known.setdefault("machines", {})[isa] = processor()
        known.setdefault("crossovers", {})[isa] = table
        dispatch.CROSSOVERS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
