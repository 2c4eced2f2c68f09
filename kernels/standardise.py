"""Weight standardisation of NSConv (`fedsparse.ops.standardise`): one program a row, and one kernel each way.

    standardise(values, gain, starts)   gain u,  u = (w - mean) s,  s = 1 / sqrt(max(sum (w - mean)^2, least))
    standardise_gradient(g, values, gain, starts)   dw = gain s (g - mean(g) - u sum(u g)),  dgain = sum(u g)

without the last term of dw where the sum of squares is not above `least`. Sums run in float32, or float64 for float64
values, in one order: bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import accumulator
from .launch import check_size, on

_BLOCK = 512
_WARPS = 4


@triton.jit
def row_sum(x: tl.tensor, begin: tl.tensor, end: tl.tensor, ACC: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """The sum of entries begin to end."""
    total = tl.zeros((BLOCK,), ACC)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < end, other=0.0).to(ACC)
    return tl.sum(total, axis=0)


@triton.jit
def row_products(
    x: tl.tensor,
    x_mean: tl.tensor,
    y: tl.tensor,
    y_mean: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """sum (x - x_mean) (y - y_mean)."""
    total = tl.zeros((BLOCK,), ACC)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        left = tl.load(x + at, mask=at < end, other=0.0).to(ACC) - x_mean
        right = tl.load(y + at, mask=at < end, other=0.0).to(ACC) - y_mean
        total += tl.where(at < end, left * right, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def standardise_kernel(
    values: tl.tensor,
    gain: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    LEAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a row."""
    row = tl.program_id(0)
    begin = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    mean = row_sum(values, begin, end, ACC, BLOCK) / tl.maximum(end - begin, 1).to(ACC)
    squares = row_products(values, mean, values, mean, begin, end, ACC, BLOCK)
    scale = tl.load(gain + row).to(ACC) / tl.sqrt(tl.maximum(squares, LEAST))
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        made = (tl.load(values + at, mask=at < end, other=0.0).to(ACC) - mean) * scale
        tl.store(out + at, made.to(out.dtype.element_ty), mask=at < end)


@triton.jit
def standardise_gradient_kernel(
    g: tl.tensor,
    values: tl.tensor,
    gain: tl.tensor,
    starts: tl.tensor,
    dvalues: tl.tensor,
    dgain: tl.tensor,
    LEAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a row. The sum of u is 0, so that g may have its mean taken off before it is multiplied by u."""
    row = tl.program_id(0)
    begin = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    count = tl.maximum(end - begin, 1).to(ACC)
    mean = row_sum(values, begin, end, ACC, BLOCK) / count
    g_mean = row_sum(g, begin, end, ACC, BLOCK) / count
    squares = row_products(values, mean, values, mean, begin, end, ACC, BLOCK)
    scale = 1.0 / tl.sqrt(tl.maximum(squares, LEAST))
    along = row_products(values, mean, g, g_mean, begin, end, ACC, BLOCK) * scale
    tl.store(dgain + row, along.to(dgain.dtype.element_ty))
    slope = tl.where(squares > LEAST, along * scale, 0.0)
    factor = tl.load(gain + row).to(ACC) * scale
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        off = tl.load(values + at, mask=at < end, other=0.0).to(ACC) - mean
        made = factor * (tl.load(g + at, mask=at < end, other=0.0).to(ACC) - g_mean - off * slope)
        tl.store(dvalues + at, made.to(dvalues.dtype.element_ty), mask=at < end)


def standardise(values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
    """[nnz] of values [nnz], gain [N] and row starts int32 [N + 1], in the values' dtype."""
    check_size("standardise", values.numel())
    out = torch.empty_like(values)
    how = {"LEAST": least, "ACC": accumulator(values.dtype), "BLOCK": _BLOCK, "num_warps": _WARPS}
    if len(gain):
        with on(values):
            standardise_kernel[(len(gain),)](values, gain, starts, out, **how)
    return out


def standardise_gradient(
    g: Tensor, values: Tensor, gain: Tensor, starts: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """(dvalues [nnz], dgain [N]) in the dtypes of values and gain; operands as `standardise` has them, g [nnz]."""
    dvalues, dgain = torch.empty_like(values), torch.empty_like(gain)
    how = {"LEAST": least, "ACC": accumulator(values.dtype), "BLOCK": _BLOCK, "num_warps": _WARPS}
    if len(gain):
        with on(values):
            standardise_gradient_kernel[(len(gain),)](g, values, gain, starts, dvalues, dgain, **how)
    return dvalues, dgain
