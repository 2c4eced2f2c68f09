"""One convolution on the CPU, forward and both gradients: sparse kernels against every rival at hand.

    python -m benchmarks.layers [--density 0.5 0.2 ...] [--layer 64x32] [--batch 64] [--threads 1] [--csv FILE]

The layers are the 3x3 convolutions of ResNet-18's four stages. Ours: single weights ("sparse"), and strips of V
output channels that share their columns ("sparse V16"), each in the blocked layout that a network stays in; "sparse,
NCHW" is a single layer that converts on its way in and out; strips in bfloat16 ("sparse V16 bf16") where the CPU has
AMX. Rivals: dense fp32 torch (NCHW and channels_last), dense bf16 channels_last, masked dense (weight and gradient
multiplied by the mask), torch.sparse CSR on unfolded windows, and SparseProp where `--sparseprop FOLDER` has it (`pip
install --no-deps --no-build-isolation --target FOLDER sparseprop==0.1.14`). fp32 unless named. Each result is
compared with float64 before anything is timed.

Contenders of a layer take turns, so that a busy machine is busy for all; times are medians, thread CPU time with one
thread, wall time with more. Ratios are to the best dense fp32; below them the geometric mean over the layers, against
the goals, and the density from which on sparse wins.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layers_summary import DENSE_BF16, DENSITIES, STRIPS_BF16, summary
from benchmarks.results import Row, header, write_csv
from benchmarks.rivals.convolution import Calls, csr, sparseprop
from fedsparse import ops
from fedsparse.ops.algebra import FAMILIES
from fedsparse.ops.blocked_conv2d import _within
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

LAYERS = {"64x32": (64, 32), "128x16": (128, 16), "256x8": (256, 8), "512x4": (512, 4)}
PASSES = ("forward", "input", "weight")
SPARSEPROP = "SparseProp 0.1.14"


@dataclass(frozen=True)
class Operands:
    """One layer's tensors: x, gy [B, C, S, S]; topology and values of a C x C x 3 x 3 weight."""

    topology: Topology
    values: Tensor
    x: Tensor
    gy: Tensor

    @property
    def geometry(self) -> tuple:
        """As `algebra` takes it."""
        size = (self.x.shape[2], self.x.shape[3])
        return (self.topology.kernel, (1, 1), (1, 1), (1, 1), size)


@dataclass
class Contender:
    """A way to run the three passes, and how long each took."""

    name: str
    calls: Calls
    density: float | None
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PASSES})

    def run(self, warm_up: bool = False) -> None:
        """Run each pass once and note its time."""
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        for name, call in self.calls.items():
            start = clock()
            call()
            if not warm_up:
                self.times[name].append((clock() - start) * 1e3)

    def milliseconds(self, name: str) -> float:
        """Median of a pass."""
        return statistics.median(self.times[name])

    @property
    def total(self) -> float:
        """Medians of the passes it has, added."""
        return sum(self.milliseconds(name) for name in self.calls)


def operands(channels: int, size: int, batch: int, density: float, granularity: int = 1) -> Operands:
    """Random operands."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.rand(channels // granularity, channels, 3, 3, generator=generator) < density
    topology = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity)
    x, gy = (torch.randn(batch, channels, size, size, generator=generator) for _ in range(2))
    return Operands(topology, torch.randn(topology.nnz, generator=generator), x, gy)


def sparse(o: Operands, blocked: bool) -> Calls:
    """Our kernels, never dense torch."""
    index, v = Index.of(o.topology), o.values
    products = _within(o.x.shape[0]) if blocked else FAMILIES["conv2d"]["cpu"]
    x, gy = (ops.to_blocked(o.x), ops.to_blocked(o.gy)) if blocked else (o.x, o.gy)
    return {
        "forward": lambda: products.product(v, index, x, None, o.geometry),
        "input": lambda: products.transposed(v, index, gy, o.geometry),
        "weight": lambda: products.sampled(index, gy, x, o.geometry),
    }


def dense(o: Operands, layout: torch.memory_format, dtype: torch.dtype = torch.float32, masked: bool = False) -> Calls:
    """torch's own convolution; `masked` multiplies the weight and its gradient by the mask."""
    weight = o.topology.unpack(o.values).to(dtype).to(memory_format=layout)
    x, gy = o.x.to(dtype).to(memory_format=layout), o.gy.to(dtype).to(memory_format=layout)
    mask = o.topology.mask().to(dtype) if masked else None

    def gradient(which: int) -> Callable[[], Tensor]:
        wanted = [which == 0, which == 1, False]
        backward = torch.ops.aten.convolution_backward
        ones, pads = (1, 1), (1, 1)
        run = lambda: backward(gy, x, weight, None, ones, pads, ones, False, (0, 0), 1, wanted)[which]  # noqa: E731
        return run if mask is None or which == 0 else lambda: run() * mask

    return {
        "forward": lambda: F.conv2d(x, weight if mask is None else weight * mask, None, 1, 1),
        "input": gradient(0),
        "weight": gradient(1),
    }


def in_bf16(o: Operands) -> Operands:
    """The operands rounded to bfloat16."""
    return Operands(o.topology, o.values.bfloat16(), o.x.bfloat16(), o.gy.bfloat16())


def strips_bf16() -> str | None:
    """What strips in bfloat16 are called, or None where they do not run."""
    tiles = torch.ops.fedsparse.tiles()
    return {"amx": STRIPS_BF16, "none": None}.get(tiles, f"{STRIPS_BF16}, {tiles}")


def check(o: Operands, layouts: tuple[bool, ...] = (False, True)) -> None:
    """AssertionError where a pass of ours is not the float64 result up to rounding; layouts: blocked or not."""
    limit = 2**-8 if o.x.dtype == torch.bfloat16 else 1e-5
    wide = Operands(o.topology, o.values.double(), o.x.double(), o.gy.double())
    expected = {name: call() for name, call in dense(wide, torch.contiguous_format, torch.float64).items()}
    expected["weight"] = o.topology.pack(expected["weight"])
    for blocked in layouts:
        for name, call in sparse(o, blocked).items():
            found = call()
            found = ops.from_blocked(found, o.x.shape[0]) if found.dim() == 5 else found
            error = float((found.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-9))
            assert error < limit, f"{name} is wrong: relative error {error:.1e}"


def contenders(layer: str, densities: Iterable[float], batch: int, rivals: "Rivals") -> list[Contender]:
    """Everyone of one layer."""
    channels, size = LAYERS[layer]
    last = torch.channels_last
    full = operands(channels, size, batch, 1.0)
    found = [
        Contender("dense fp32 NCHW", dense(full, torch.contiguous_format), None),
        Contender("dense fp32 channels_last", dense(full, last), None),
        Contender("masked dense fp32", dense(full, torch.contiguous_format, masked=True), None),
    ]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.append(Contender(DENSE_BF16, dense(full, last, torch.bfloat16), None))
    for density in densities:
        single, strips = (operands(channels, size, batch, density, v) for v in (1, 16))
        check(single)
        check(strips)
        found += [
            Contender("sparse", sparse(single, blocked=True), density),
            Contender("sparse, NCHW", sparse(single, blocked=False), density),
            Contender("sparse V16", sparse(strips, blocked=True), density),
        ]
        if name := strips_bf16():
            half = in_bf16(strips)
            check(half)
            found.append(Contender(name, sparse(half, blocked=True), density))
        if density in rivals.slow:
            found.append(
                Contender("torch.sparse CSR", csr(single.topology, single.values, single.x, single.gy), density)
            )
        if rivals.sparseprop:
            found += [
                Contender(SPARSEPROP, sparseprop(single.topology, single.values, single.x, single.gy, over_on), density)
                for over_on in (False, True)
            ]
    return found


@dataclass(frozen=True)
class Rivals:
    """Which optional rivals run: SparseProp, and the densities at which the slow ones do."""

    sparseprop: bool
    slow: tuple[float, ...]


def measure(layer: str, args: argparse.Namespace, rivals: Rivals) -> list[Row]:
    """Time one layer's contenders in turn, print and return their rows."""
    everybody = contenders(layer, args.density, args.batch, rivals)
    for c in everybody:
        c.run(warm_up=True)
    for _ in range(args.rounds):
        for c in everybody:
            c.run()
    best = min(c.total for c in everybody if c.name.startswith("dense fp32"))
    everybody = [
        c for c in everybody if c.total == min(d.total for d in everybody if (d.name, d.density) == (c.name, c.density))
    ]
    rows = []
    for c in everybody:
        cells = " ".join(f"{c.milliseconds(n):9.2f}" if n in c.calls else " " * 9 for n in PASSES)
        share = "" if c.density is None else f"{c.density:.0%}"
        print(f"{layer:8}{share:>5}  {c.name:26}{cells} {c.total:10.2f} {best / c.total:8.2f}", flush=True)
        times = {f"{name}_ms": c.milliseconds(name) for name in c.calls}
        rows.append({"layer": layer, "density": c.density, "who": c.name, **times, "over_best_dense": best / c.total})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--layer", choices=list(LAYERS), nargs="+", default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sparseprop", type=Path, help="folder into which pip installed SparseProp")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(header(f"layers, batch {args.batch}"))
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print(f"{DENSE_BF16}: not measured: no AMX on this CPU, nor other bf16 instructions")
    if strips_bf16() is None:
        print(f"{STRIPS_BF16}: not measured: no AMX on this CPU")
    if args.sparseprop:
        sys.path.append(str(args.sparseprop))
    else:
        print("SparseProp: not measured (no --sparseprop FOLDER)")
    print(f"\nlayer   density who{'':23}{''.join(f'{name:>10}' for name in PASSES)}   total ms   ratio")
    rivals = Rivals(args.sparseprop is not None, (0.1, 0.01))
    rows = [row for layer in args.layer for row in measure(layer, args, rivals)]
    summary(rows)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
