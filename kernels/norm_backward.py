"""Gradients of batch norm of images that stand innermost, with the residual and the ReLU that `norm` fuses with it.

    batch_norm_backward(gy, ...)   dx, dweight, dbias, and the residual's gradient; of ReLU the bits alone are needed

Sums run in float32, in one order: bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import rectified
from .launch import SIZES, on
from .moments import BLOCK, aligned, how, parts_of


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
    """(dx in gy's dtype, dweight, dbias float32, the residual's gradient in gy's dtype where wanted).

    x may have been rounded to another dtype than gy's.
    With `training` through the statistics of x too; bits: those of `batch_norm` with a ReLU.
    """
    channels, run = x.shape
    parts, steps = parts_of(channels, run)
    sums, products = (x.new_empty(parts, channels, dtype=torch.float32) for _ in range(2))
    dx = torch.empty_like(gy)
    relu = bits is not None
    of_residual = (torch.empty_like(gy) if relu else gy) if residual else None
    kept = gy if bits is None else bits
    with on(x):
        norm_sums_kernel[(channels, parts)](gy, kept, x, mean, sums, products, run, steps, RELU=relu, **how(run))
        total, product = sums.sum(0), products.sum(0)
        norm_gradient_kernel[(triton.cdiv(run, BLOCK), channels)](
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
            **how(run),
        )
    return dx, product * torch.rsqrt(variance + eps), total, of_residual
