"""Speed of one sparse convolution on the CPU against the best dense fp32 torch, pass by pass.

    python benchmarks/layers.py [--density 0.2 0.1] [--layer 64x32] [--batch 64] [--threads 1] [--seconds 0.3]

Each result is compared with the float64 reference before anything is timed. Times are medians in milliseconds:
thread CPU time with one thread, wall time with more. "net" leaves out the conversion to and from blocks of images,
taken as the time of the same op with a single active weight.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.load import compiled
from fedsparse.topology import Topology

LAYERS = {"64x32": (64, 32), "128x16": (128, 16), "256x8": (256, 8), "512x4": (512, 4)}
PASSES = ("forward", "input", "weight")


@dataclass(frozen=True)
class Operands:
    """One layer's tensors: x, gy [B, C, S, S]; topology and values of a C x C x k x k weight."""

    topology: Topology
    values: Tensor
    x: Tensor
    gy: Tensor
    padding: int


def operands(channels: int, size: int, batch: int, density: float, kernel: int) -> Operands:
    """Random operands; density 0 stands for one active weight."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(channels, channels, kernel, kernel, generator=generator) < density
    if not density:
        mask[0, 0, 0, 0] = True
    topology = Topology.from_mask(mask)
    x, gy = (torch.randn(batch, channels, size, size, generator=generator) for _ in range(2))
    return Operands(topology, torch.randn(topology.nnz, generator=generator), x, gy, kernel // 2)


def sparse_passes(o: Operands) -> dict[str, Callable[[], Tensor]]:
    """The three passes through the public ops."""
    size = (o.x.shape[2], o.x.shape[3])
    return {
        "forward": lambda: ops.conv2d(o.values, o.topology, o.x, padding=o.padding),
        "input": lambda: ops.conv2d_input(o.values, o.topology, o.gy, size, padding=o.padding),
        "weight": lambda: ops.conv2d_weight(o.topology, o.gy, o.x, padding=o.padding),
    }


def dense_passes(o: Operands, layout: torch.memory_format) -> dict[str, Callable[[], Tensor]]:
    """The same with a dense weight and torch's own convolution."""
    weight = o.topology.unpack(o.values).to(memory_format=layout)
    x, gy, pad = o.x.to(memory_format=layout), o.gy.to(memory_format=layout), (o.padding, o.padding)

    def gradient(which: int) -> Callable[[], Tensor]:
        mask = [which == 0, which == 1, False]
        backward = torch.ops.aten.convolution_backward
        return lambda: backward(gy, x, weight, None, (1, 1), pad, (1, 1), False, (0, 0), 1, mask)[which]

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, None, 1, pad),
        "input": gradient(0),
        "weight": gradient(1),
    }


def check(o: Operands) -> None:
    """AssertionError where a pass is not the float64 reference's result up to rounding."""
    wide = Operands(o.topology, o.values.double(), o.x.double(), o.gy.double(), o.padding)
    with ops.use_backend("dense"):
        expected = {name: run() for name, run in sparse_passes(wide).items()}
    for name, run in sparse_passes(o).items():
        error = float((run().double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-9))
        assert error < 1e-5, f"{name} is wrong: relative error {error:.1e}"


def milliseconds(run: Callable[[], Tensor], seconds: float) -> float:
    """Median time of one call, after a warm-up, over at least five calls and about `seconds`."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times) * 1e3


def measure(channels: int, size: int, densities: list[float], args: argparse.Namespace) -> None:
    """Print the rows of one layer."""
    sample = operands(channels, size, args.batch, 1.0, args.kernel)
    dense = {name: float("inf") for name in PASSES}
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, run in dense_passes(sample, layout).items():
            dense[name] = min(dense[name], milliseconds(run, args.seconds))
    single = sparse_passes(operands(channels, size, args.batch, 0.0, args.kernel))
    moved = {name: milliseconds(run, args.seconds) for name, run in single.items()}
    for density in densities:
        o = operands(channels, size, args.batch, density, args.kernel)
        check(o)
        took = {name: milliseconds(run, args.seconds) for name, run in sparse_passes(o).items()}
        cells = [
            f"{took[n]:7.2f} {dense[n] / took[n]:5.2f} {dense[n] / max(took[n] - moved[n], 1e-3):6.2f}" for n in PASSES
        ]
        total, net = sum(took.values()), sum(took.values()) - sum(moved.values())
        both = f"{sum(dense.values()) / total:5.2f} {sum(dense.values()) / net:6.2f}"
        print(f"{channels:4d}@{size:<3d} {density:6.1%} | {' | '.join(cells)} | {both}", flush=True)
    print(f"         dense  | {' | '.join(f'{dense[n]:7.2f}' + ' ' * 13 for n in PASSES)} | {sum(dense.values()):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.01])
    parser.add_argument("--layer", choices=list(LAYERS), nargs="+", default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    isa = compiled()["instruction_set_chosen"]
    print(f"{isa}, {args.threads} thread(s), batch {args.batch}, kernel {args.kernel} x {args.kernel}")
    print("each pass: ms, times faster than dense, and net of conversion; last: all three passes")
    print(f"layer   density | {'forward':^21} | {'input gradient':^21} | {'weight gradient':^21} | all three")
    for name in args.layer:
        measure(*LAYERS[name], args.density, args)


if __name__ == "__main__":
    main()
