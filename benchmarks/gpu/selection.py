"""topk over ResNet-18, growth of its largest layer and sums of clients' reports of it, against what torch has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.pack_activation import pack_bits
from fedsparse.topology import Topology

from .bench import Bench, checked
from .rows import Case, Measured, Timing

# Convolutions of ResNet-18: (3x3 of so many channels in and out, how many)
_LAYERS = ((64 * 64, 4), (64 * 128, 1), (128 * 128, 3), (128 * 256, 1), (256 * 256, 3), (256 * 512, 1), (512 * 512, 3))
SIZES = [9 * weights for weights, layers in _LAYERS for _ in range(layers)]
SHARE = 0.05
_WHOLE, _LAYERWISE, _GROWTH = "top 5% of 11.0M scores", "top 5% of each of 16 layers", "growth of 1% of 512x512x3x3 b64"

_SUMS = "sum of 10 reports of 512x512x3x3 density 5%"


def cases() -> list[Case]:
    """Ours after the rival that it is compared with."""
    return [
        Case(f"{_WHOLE}, torch.topk and sort", partial(torch_topk, sizes="whole")),
        Case(f"{_WHOLE}, radix select", partial(radix_select, sizes="whole"), versus=f"{_WHOLE}, torch.topk and sort"),
        Case(f"{_LAYERWISE}, torch.topk and sort", partial(torch_topk, sizes="layers")),
        Case(
            f"{_LAYERWISE}, radix select",
            partial(radix_select, sizes="layers"),
            versus=f"{_LAYERWISE}, torch.topk and sort",
        ),
        Case(f"{_GROWTH}, dense gradient and torch.topk", dense_growth),
        Case(f"{_GROWTH}, tiles", tiled_growth, versus=f"{_GROWTH}, dense gradient and torch.topk"),
        Case(f"{_SUMS}, torch", partial(sums, backend="dense"), seconds=1.0),
        Case(f"{_SUMS}, one kernel", partial(sums, backend="triton"), versus=f"{_SUMS}, torch", seconds=1.0),
    ]


def _scores(bench: Bench, sizes: str) -> tuple[Tensor, list[int], list[int]]:
    each = [bench.size(size, size // 9000) for size in SIZES]
    each = [sum(each)] if sizes == "whole" else each
    return bench.random(sum(each)).abs(), each, [int(SHARE * size) for size in each]


def torch_topk(bench: Bench, sizes: str) -> Measured:
    """Which of equal scores torch takes is its own affair."""
    scores, each, counts = _scores(bench, sizes)

    def run() -> Tensor:
        parts, start = [], 0
        for part, count in zip(scores.split(each), counts):
            parts.append(torch.topk(part, count, sorted=False).indices.sort().values + start)
            start += len(part)
        return torch.cat(parts)

    return _measured(bench, run, scores, each, counts)


def radix_select(bench: Bench, sizes: str) -> Measured:
    """The kernels, without the check for NaN, for which the host waits."""
    from fedsparse.ops.topk import selects_on_triton, triton_selected

    scores, each, counts = _scores(bench, sizes)
    select = triton_selected if selects_on_triton(scores) else ops.topk_segmented
    return _measured(bench, lambda: select(scores, each, counts), scores, each, counts)


def _measured(bench: Bench, run: Callable[[], Tensor], scores: Tensor, sizes: list[int], counts: list[int]) -> Measured:
    with ops.use_backend("reference"):
        expected = ops.topk_segmented(scores, sizes, counts)
    error = checked(float((run() != expected).sum()), 0.0, "the number of places that differ")
    timing = bench.time(run, flush=True)
    return Measured({"select": timing}, error, bench.peak(run), 4 * scores.numel() / timing.median / 1e9, "TB/s")


def _layer(bench: Bench) -> tuple[Tensor, Tensor, Topology, int]:
    channels, side = bench.size(512, 6), 4
    mask = torch.rand(channels, channels, 3, 3, generator=torch.Generator().manual_seed(11)) < SHARE
    # Small integers: their sums are exact in any order, so that both ways find the same.
    x = bench.random(bench.size(64, 4), channels, side, side, seed=1).round()
    gy = bench.random(bench.size(64, 4), channels, side, side, seed=2).round()
    return x, gy, Topology.from_mask(mask).to(bench.device), mask.numel() // 100


def _dense_growth(x: Tensor, gy: Tensor, active: Tensor, count: int) -> Tensor:
    weight = gy.new_empty(1).expand(gy.shape[1], x.shape[1], 3, 3)
    gradient = torch.ops.aten.convolution_backward(
        gy, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, [False, True, False]
    )[1]
    scores = gradient.flatten().abs().masked_fill_(active, -1)
    return scores[torch.topk(scores, count).indices]


def dense_growth(bench: Bench) -> Measured:
    """The whole gradient, its active places left out, then torch.topk."""
    x, gy, topology, count = _layer(bench)
    active = topology.mask().flatten()
    with bench.reference():
        timing = bench.time(lambda: _dense_growth(x, gy, active, count), flush=True)
        peak = bench.peak(lambda: _dense_growth(x, gy, active, count))
    return Measured({"growth": timing}, None, peak)


def tiled_growth(bench: Bench) -> Measured:
    """`ops.grow_scores`; the scores found are those of the dense gradient."""
    x, gy, topology, count = _layer(bench)
    run = partial(ops.grow_scores, x, gy, topology, count, padding=1)
    with bench.reference():
        expected = _dense_growth(x, gy, topology.mask().flatten(), count).sort().values
        found = run()[1].abs().sort().values
        error = checked(float((found - expected).abs().max()), 0.0, "the largest difference of a score")
        timing: Timing = bench.time(run, flush=True)
        peak = bench.peak(run)
    return Measured({"growth": timing}, error, peak)


def sums(bench: Bench, backend: str) -> Measured:
    """`ops.sparse_sum` of clients whose masks differ; the integers are those of the CPU."""
    if backend == "triton":
        bench.need_cuda("Triton")
    clients, size = bench.size(10, 3), 9 * bench.size(512, 6) ** 2
    flags = torch.rand(clients, size, generator=torch.Generator().manual_seed(11)) < SHARE
    values = torch.randn(int(flags.sum()), generator=torch.Generator().manual_seed(12))
    bits, shares = pack_bits(flags), [1 / clients] * clients
    expected = ops.sparse_sum(bits, values, shares)
    there = bits.to(bench.device), values.to(bench.device)
    with ops.use_backend(backend):
        found = ops.sparse_sum(*there, shares)
        wrong = sum(float((a.cpu() != b).sum()) for a, b in zip(found, expected, strict=True))
        error = checked(wrong, 0.0, "the number of sums that differ")
        timing = bench.time(lambda: ops.sparse_sum(*there, shares), flush=True)
        peak = bench.peak(lambda: ops.sparse_sum(*there, shares))
    return Measured({"sum": timing}, error, peak)
