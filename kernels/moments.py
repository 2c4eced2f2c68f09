"""Mean and variance of each channel of images that stand innermost.

    batch_moments(x)   of x [C, R], a row of R = H W B numbers a channel: mean, biased variance [C]; moves running ones

Statistics run in float32: each program takes mean and squares about that mean of a part of a row, and the parts are
joined by Chan, Golub and LeVeque's formula (1979), in order. Nothing is atomic: results are bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import split
from .launch import SIZES, check_size, on

BLOCK = 1024
_WARPS = 4


@triton.jit
def aligned(run: tl.tensor, ALIGNED: tl.constexpr) -> tl.tensor:
    """The length of a row, where ALIGNED as a multiple of 16: then the compiler makes loads 16 bytes wide."""
    if ALIGNED:
        run = run // 16 * 16
    return run


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    run: tl.int32,
    steps: tl.int32,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: `steps` blocks of one row; means, squares float32 [parts, channels]."""
    run = aligned(run, ALIGNED)
    channel = tl.program_id(0)
    first = tl.program_id(1) * steps * BLOCK
    x += channel.to(tl.int64) * run
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < run, other=0.0).to(tl.float32)
    count = tl.minimum(run - first, steps * BLOCK).to(tl.float32)
    mean = tl.sum(total, axis=0) / count
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        off = tl.load(x + at, mask=at < run, other=0.0).to(tl.float32) - mean
        total += tl.where(at < run, off * off, 0.0)
    to = tl.program_id(1) * tl.num_programs(0) + channel
    tl.store(means + to, mean)
    tl.store(squares + to, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=SIZES)
def join_moments_kernel(
    means: tl.tensor,
    squares: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    running_mean: tl.tensor,
    running_variance: tl.tensor,
    channels: tl.int32,
    run: tl.int32,
    parts: tl.int32,
    length: tl.int32,
    momentum: tl.float32,
    RUNNING: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One program: CHANNELS channels; all parts but the last have `length` numbers."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    live = c < channels
    count = 0.0
    m = tl.zeros((CHANNELS,), tl.float32)
    s = tl.zeros((CHANNELS,), tl.float32)
    for part in range(parts):
        more = tl.minimum(run - part * length, length).to(tl.float32)
        off = tl.load(means + part * channels + c, mask=live, other=0.0) - m
        s += tl.load(squares + part * channels + c, mask=live, other=0.0) + off * off * (count * more / (count + more))
        m += off * (more / (count + more))
        count += more
    tl.store(mean + c, m, mask=live)
    tl.store(variance + c, s / count, mask=live)
    if RUNNING:
        old = tl.load(running_mean + c, mask=live, other=0.0)
        tl.store(running_mean + c, old + momentum * (m - old), mask=live)
        old = tl.load(running_variance + c, mask=live, other=0.0)
        tl.store(running_variance + c, old + momentum * (s / (count - 1) - old), mask=live)


def parts_of(channels: int, run: int) -> tuple[int, int]:
    """(parts, blocks of each) of a row."""
    return split(triton.cdiv(run, BLOCK), channels)


def how(run: int) -> dict[str, int | bool]:
    """How the kernels of rows are compiled and launched."""
    return {"ALIGNED": run % 16 == 0, "BLOCK": BLOCK, "num_warps": _WARPS}


def join(
    means: Tensor, squares: Tensor, run: int, length: int, running: tuple[Tensor, Tensor, float] | None = None
) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) [C] of rows of `run` numbers from those of their parts, [parts, C], of `length` each.

    running: mean, variance and momentum of running statistics that move (unbiased).
    """
    parts, channels = means.shape
    mean, variance = (means.new_empty(channels) for _ in range(2))
    running_mean, running_variance, momentum = (mean, variance, 0.0) if running is None else running
    join_moments_kernel[(triton.cdiv(channels, 64),)](
        means,
        squares,
        mean,
        variance,
        running_mean,
        running_variance,
        channels,
        run,
        parts,
        length,
        momentum,
        RUNNING=running is not None,
        CHANNELS=64,
        num_warps=2,
    )
    return mean, variance


def batch_moments(
    x: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) float32 [C] of x [C, R]; running ones, float32 [C], move by `momentum` (unbiased)."""
    channels, run = x.shape
    check_size("batch_moments", x.numel())
    parts, steps = parts_of(channels, run)
    means, squares = (x.new_empty(parts, channels, dtype=torch.float32) for _ in range(2))
    moving = None if running_mean is None or running_variance is None else (running_mean, running_variance, momentum)
    with on(x):
        moments_kernel[(channels, parts)](x, means, squares, run, steps, **how(run))
        return join(means, squares, run, steps * BLOCK, moving)
