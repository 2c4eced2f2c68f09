"""Batch norm of images that stand innermost, the sum with a residual and the ReLU after it in the same kernel.

x is [C, R], a row of R = H W B numbers a channel.

    batch_moments(x)               mean, biased variance [C]; moves running ones
    batch_norm(x, mean, variance)  y = (x - mean) / sqrt(variance + eps) * weight + bias (+ residual), or max(y, 0)
                                   with a bit for each element: whether it was above 0 (or NaN)
    batch_norm_backward(gy, ...)   dx, dweight, dbias, and the residual's gradient; of ReLU the bits alone are needed

Statistics run in float32: each program takes mean and squares about that mean of a part of a row, and the parts are
joined by Chan, Golub and LeVeque's formula (1979), in order. Nothing is atomic: results are bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import SIZES, check_size, on

_BLOCK = 1024
_WARPS = 4
_PROGRAMS = 1024


@triton.jit
def aligned(run: tl.tensor, ALIGNED: tl.constexpr) -> tl.tensor:
    """The length of a row, where ALIGNED as a multiple of 16: then the compiler makes loads 16 bytes wide."""
    if ALIGNED:
        run = run // 16 * 16
    return run


@triton.jit
def rectified(g: tl.tensor, bits: tl.tensor, at: tl.tensor, run: tl.tensor) -> tl.tensor:
    """g where the bit is set, else 0; bits of one row, lowest first."""
    byte = tl.load(bits + at // 8, mask=at < run, other=0).to(tl.int32)
    return tl.where((byte >> (at % 8)) & 1 != 0, g, 0.0)


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


@triton.jit(do_not_specialize=SIZES)
def norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    bits: tl.tensor,
    run: tl.int32,
    eps: tl.float32,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a block of one row; bits uint8 [channels, ceil(run / 8)]."""
    run = aligned(run, ALIGNED)
    channel = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = channel.to(tl.int64) * run
    scale = tl.load(weight + channel).to(tl.float32) / tl.sqrt(tl.load(variance + channel) + eps)
    off = tl.load(x + row + at, mask=at < run, other=0.0).to(tl.float32) - tl.load(mean + channel)
    out = off * scale + tl.load(bias + channel).to(tl.float32)
    if RESIDUAL:
        out += tl.load(residual + row + at, mask=at < run, other=0.0).to(tl.float32)
    if RELU:
        out = out.to(y.dtype.element_ty).to(tl.float32)
        below = out <= 0
        out = tl.where(below, 0.0, out)
        ones = tl.reshape(tl.where(below, 0, 1), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
        pitch = (run + 7) // 8
        to = tl.program_id(0) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(bits + channel.to(tl.int64) * pitch + to, tl.sum(ones, axis=1).to(tl.uint8), mask=to < pitch)
    tl.store(y + row + at, out.to(y.dtype.element_ty), mask=at < run)


@triton.jit(do_not_specialize=SIZES)
def norm_sums_kernel(
    gy: tl.tensor,
    bits: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    run: tl.int32,
    steps: tl.int32,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: sums of gy and of gy (x - mean) over `steps` blocks of one row; float32 [parts, channels]."""
    run = aligned(run, ALIGNED)
    channel = tl.program_id(0)
    first = tl.program_id(1) * steps * BLOCK
    row = channel.to(tl.int64) * run
    bits += channel.to(tl.int64) * ((run + 7) // 8)
    middle = tl.load(mean + channel)
    total = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(gy + row + at, mask=at < run, other=0.0).to(tl.float32)
        if RELU:
            g = rectified(g, bits, at, run)
        total += g
        product += g * (tl.load(x + row + at, mask=at < run, other=0.0).to(tl.float32) - middle)
    to = tl.program_id(1) * tl.num_programs(0) + channel
    tl.store(sums + to, tl.sum(total, axis=0))
    tl.store(products + to, tl.sum(product, axis=0))


@triton.jit(do_not_specialize=SIZES)
def norm_gradient_kernel(
    gy: tl.tensor,
    bits: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    dx: tl.tensor,
    dresidual: tl.tensor,
    run: tl.int32,
    eps: tl.float32,
    TRAINING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a block of one row; sums, products float32 [channels]. dresidual is written where RESIDUAL."""
    run = aligned(run, ALIGNED)
    channel = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = channel.to(tl.int64) * run
    rstd = 1.0 / tl.sqrt(tl.load(variance + channel) + eps)
    out = tl.load(gy + row + at, mask=at < run, other=0.0).to(tl.float32)
    if RELU:
        out = rectified(out, bits + channel.to(tl.int64) * ((run + 7) // 8), at, run)
    if RESIDUAL:
        tl.store(dresidual + row + at, out.to(dresidual.dtype.element_ty), mask=at < run)
    if TRAINING:
        off = tl.load(x + row + at, mask=at < run, other=0.0).to(tl.float32) - tl.load(mean + channel)
        out -= tl.load(sums + channel) / run + off * (rstd * rstd * tl.load(products + channel) / run)
    out *= rstd * tl.load(weight + channel).to(tl.float32)
    tl.store(dx + row + at, out.to(dx.dtype.element_ty), mask=at < run)


def parts_of(channels: int, run: int) -> tuple[int, int]:
    """(parts, blocks of each) of a row."""
    blocks = triton.cdiv(run, _BLOCK)
    wanted = max(1, min(_PROGRAMS // max(channels, 1), triton.cdiv(blocks, 4)))
    steps = max(1, triton.cdiv(blocks, wanted))
    return max(1, triton.cdiv(blocks, steps)), steps


def batch_moments(
    x: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) float32 [C] of x [C, R]; running ones, float32 [C], move by `momentum` (unbiased)."""
    channels, run = x.shape
    check_size("batch_moments", x.numel())
    parts, steps = parts_of(channels, run)
    means, squares = (x.new_empty(parts, channels, dtype=torch.float32) for _ in range(2))
    mean, variance = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    running = running_mean is not None and running_variance is not None
    with on(x):
        moments_kernel[(channels, parts)](x, means, squares, run, steps, **_how(run))
        join_moments_kernel[(triton.cdiv(channels, 64),)](
            means,
            squares,
            mean,
            variance,
            running_mean if running else mean,
            running_variance if running else variance,
            channels,
            run,
            parts,
            steps * _BLOCK,
            momentum,
            RUNNING=running,
            CHANNELS=64,
            num_warps=2,
        )
    return mean, variance


def _how(run: int) -> dict[str, int | bool]:
    return {"ALIGNED": run % 16 == 0, "BLOCK": _BLOCK, "num_warps": _WARPS}


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(y [C, R] in x's dtype, bits uint8 [C, ceil(R / 8)] of the ReLU or None).

    mean, variance float32 [C], weight and bias [C] of any floating dtype; residual [C, R].
    """
    channels, run = x.shape
    check_size("batch_norm", run)
    y = torch.empty_like(x)
    bits = torch.empty(channels, (run + 7) // 8, dtype=torch.uint8, device=x.device) if relu else None
    with on(x):
        norm_kernel[(triton.cdiv(run, _BLOCK), channels)](
            x,
            x if residual is None else residual,
            mean,
            variance,
            weight,
            bias,
            y,
            x if bits is None else bits,
            run,
            eps,
            RESIDUAL=residual is not None,
            RELU=relu,
            **_how(run),
        )
    return y, bits


def batch_norm_backward(
    gy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    eps: float,
    training: bool,
    bits: Tensor | None = None,
    residual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dx in x's dtype, dweight, dbias float32, the residual's gradient in x's dtype where wanted).

    With `training` through the statistics of x too; bits: those of `batch_norm` with a ReLU.
    """
    channels, run = x.shape
    parts, steps = parts_of(channels, run)
    sums, products = (x.new_empty(parts, channels, dtype=torch.float32) for _ in range(2))
    dx = torch.empty_like(x)
    relu = bits is not None
    of_residual = (torch.empty_like(x) if relu else gy) if residual else None
    kept = gy if bits is None else bits
    with on(x):
        norm_sums_kernel[(channels, parts)](gy, kept, x, mean, sums, products, run, steps, RELU=relu, **_how(run))
        total, product = sums.sum(0), products.sum(0)
        norm_gradient_kernel[(triton.cdiv(run, _BLOCK), channels)](
            gy,
            kept,
            x,
            mean,
            variance,
            weight,
            total,
            product,
            dx,
            dx if of_residual is None else of_residual,
            run,
            eps,
            TRAINING=training,
            RESIDUAL=residual and relu,
            RELU=relu,
            **_how(run),
        )
    return dx, product * torch.rsqrt(variance + eps), total, of_residual
