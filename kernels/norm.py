"""Batch norm of images that stand innermost, the sum with a residual and the ReLU after it in the same kernel.

    batch_norm(x, mean, variance)  y = (x - mean) / sqrt(variance + eps) * weight + bias (+ residual), or max(y, 0)
                                   with a bit for each element: whether it was above 0 (or NaN)

x is [C, R], a row of R = H W B numbers a channel; mean and variance are those of `moments`, or given.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import store_flags
from .launch import SIZES, check_size, on
from .moments import BLOCK, aligned, how


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
        of_row = bits + channel.to(tl.int64) * ((run + 7) // 8)
        store_flags(of_row, tl.program_id(0) * BLOCK, tl.where(below, 0, 1), run, BLOCK)
    tl.store(y + row + at, out.to(y.dtype.element_ty), mask=at < run)


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
        norm_kernel[(triton.cdiv(run, BLOCK), channels)](
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
            **how(run),
        )
    return y, bits
