"""ReLU with a bit an element for its backward pass (`fedsparse.ops.relu`).

    relu(x, limit)            y = min(max(x, 0), limit), NaN stays NaN; bits uint8 [ceil(n / 8)] of 0 < y < limit or NaN
    relu_gradient(gy, bits)   gy where the bit is set, else 0

of contiguous tensors, element i of which has bit i % 8 of byte i // 8. One kernel each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import rectified, store_flags
from .launch import SIZES, check_size, on
from .moments import BLOCK, aligned, how


@triton.jit
def entries_at(x: tl.tensor, at: tl.tensor, run: tl.tensor) -> tl.tensor:
    """Half types as float32: the interpreter has no arithmetic of theirs."""
    entry = tl.load(x + at, mask=at < run, other=0.0)
    if entry.dtype != tl.float64:
        entry = entry.to(tl.float32)
    return entry


@triton.jit(do_not_specialize=SIZES)
def relu_kernel(
    x: tl.tensor,
    y: tl.tensor,
    bits: tl.tensor,
    run: tl.int32,
    limit: tl.float32,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a block; x and y may be the same."""
    run = aligned(run, ALIGNED)
    begin = tl.program_id(0) * BLOCK
    at = begin + tl.arange(0, BLOCK)
    entry = entries_at(x, at, run)
    below = entry <= 0
    above = entry >= limit
    store_flags(bits, begin, tl.where(below | above, 0, 1), run, BLOCK)
    out = tl.where(below, 0.0, tl.where(above, limit, entry)).to(y.dtype.element_ty)
    tl.store(y + at, out, mask=at < run)


@triton.jit(do_not_specialize=SIZES)
def relu_gradient_kernel(
    gy: tl.tensor, bits: tl.tensor, dx: tl.tensor, run: tl.int32, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One program: a block."""
    run = aligned(run, ALIGNED)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dx + at, rectified(entries_at(gy, at, run), bits, at, run).to(dx.dtype.element_ty), mask=at < run)


def relu(x: Tensor, limit: float, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """(y in x's shape, x itself where `inplace`, bits); ValueError for 2^31 elements or more."""
    run = x.numel()
    check_size("relu", run)
    y = x if inplace else torch.empty_like(x)
    bits = torch.empty((run + 7) // 8, dtype=torch.uint8, device=x.device)
    if run:
        with on(x):
            relu_kernel[(triton.cdiv(run, BLOCK),)](x, y, bits, run, limit, **how(run))
    return y, bits


def relu_gradient(gy: Tensor, bits: Tensor) -> Tensor:
    """The gradient in gy's shape."""
    run, dx = gy.numel(), torch.empty_like(gy)
    if run:
        with on(gy):
            relu_gradient_kernel[(triton.cdiv(run, BLOCK),)](gy, bits, dx, run, **how(run))
    return dx
