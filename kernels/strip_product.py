"""The output of convolutions whose mask has strips: V consecutive output channels share their columns (16, 32, 64).

    strip_product(packed, x)   y [N, H', W', G, L] = W * x [C, H, W, G, L] (+ bias)    tensor cores

A strip is a dense matrix [entries, V] times gathered rows of x: entry e of a strip is one column (c, ky, kx), and its
row of x is the channel c shifted by (ky, kx). Images stand innermost, in G blocks of L ([C, H, W, G, L]), so that every
row is made of aligned runs of G L numbers, whatever the tap and the stride; a linear layer is the case H = W = 1. An
activation once loaded feeds V multiply-adds. The other passes: `strip_sample`, the gradient to the weights, and
`strip_spread`, the first half of the gradient to the input.

A block mask of V x V needs no kernel of its own: it is a strip whose columns come V at a time. The row of an entry is
made of runs of OUTPUTS numbers (256 bytes in half types), coalesced and copied by cp.async whichever channel comes
next: consecutive channels of a convolution stand H W G L numbers apart, so that nothing becomes contiguous that was
not, and in a linear layer, where they are neighbours, the runs are as long. What blocks would save are the columns, 4
bytes an entry beside 2 V of weights and 256 of activations. One copy by the tensor memory accelerator instead of V
runs would be the reason for a kernel; it was not tried, since no GPU was at hand to time it.

Every tensor has a leading dimension of clients, who share the mask. Each output element is summed by one program in a
fixed order and nothing is atomic: results are bitwise reproducible.
Operands are float16, bfloat16 or float32, sums float32; with `tf32` float32 operands are rounded to TF32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import Geometry, Sizes, constants, origins_of, precision, shifts_of, unpadded
from .launch import SIZES, check_size, interpreting, on
from .strip_tiles import product_tile


@triton.jit(do_not_specialize=SIZES)
def strip_product_kernel(
    packed: tl.tensor,
    starts: tl.tensor,
    cols: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
    blocks: tl.int32,
    channels: tl.int32,
    high: tl.int32,
    wide: tl.int32,
    out_high: tl.int32,
    out_wide: tl.int32,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    LANES: tl.constexpr,
    V: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ENTRIES: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """One program: OUTPUTS outputs of one client x the V rows of one strip; neighbours share the outputs."""
    strip = tl.program_id(0) % strips
    tile = tl.program_id(0) // strips
    client = tl.program_id(1)
    m = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    inside, top, left, x_at = origins_of(
        m, blocks, wide, out_high, out_wide, STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, LANES
    )
    x_client = x + client.to(tl.int64) * blocks * channels * high * wide * LANES
    begin = tl.load(starts + strip)
    end = tl.load(starts + strip + 1)
    v = tl.arange(0, V)
    w_client = packed + client.to(tl.int64) * entries * V
    acc = tl.zeros((OUTPUTS, V), tl.float32)
    for first in tl.range(begin, end, ENTRIES, num_stages=STAGES):
        e = first + tl.arange(0, ENTRIES)
        live = e < end
        below, beside, e_at = shifts_of(
            cols, e, live, blocks, high, wide, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X, LANES
        )
        take = inside[:, None] & live[None, :]
        take &= unpadded(
            top[:, None] + below[None, :], left[:, None] + beside[None, :], high, wide, PADDING_Y, PADDING_X
        )
        rows = tl.load(x_client + (x_at[:, None] + e_at[None, :]), mask=take, other=0.0)
        w = tl.load(w_client + (e[:, None] * V + v[None, :]), mask=live[:, None], other=0.0)
        if UPCAST:
            rows = rows.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(rows, w, acc, input_precision=PRECISION)
    n = strip * V + v
    if HAS_BIAS:
        acc += tl.load(bias + client * strips * V + n).to(tl.float32)[None, :]
    row = out_high * out_wide * blocks * LANES
    y_client = y + client.to(tl.int64) * strips * V * row
    tl.store(y_client + (m[:, None] + (n * row)[None, :]), acc.to(y.dtype.element_ty), mask=inside[:, None])


def strip_product(
    packed: Tensor,
    starts: Tensor,
    cols: Tensor,
    x: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: Sizes,
    tf32: bool,
) -> Tensor:
    """y [clients, N, *size, G, L] from x [clients, C, H, W, G, L] and packed [clients, entries, V].

    starts int32 [strips + 1], cols int32 [entries], (c * kh + ky) * kw + kx, in the order of packed; bias
    [clients, N] or None; N = strips * V. One floating dtype; bias may have any.
    """
    clients, entries, vector = packed.shape
    strips = starts.numel() - 1
    _, channels, high, wide, blocks, lanes = x.shape
    y = x.new_empty(clients, strips * vector, *size, blocks, lanes)
    check_size("strip_product", x.numel() // clients, y.numel() // clients)
    if y.numel() == 0:
        return y
    shape = product_tile(vector, x.dtype)
    tiles = triton.cdiv(y.numel() // (clients * strips * vector), shape.outputs)
    with on(x):
        strip_product_kernel[(strips * tiles, clients)](
            packed,
            starts,
            cols,
            x.contiguous(),
            packed if bias is None else bias.contiguous(),
            y,
            entries,
            strips,
            blocks,
            channels,
            high,
            wide,
            *size,
            *constants(geometry),
            LANES=lanes,
            V=vector,
            OUTPUTS=shape.outputs,
            ENTRIES=shape.entries,
            STAGES=shape.stages,
            PRECISION=precision(x.dtype, tf32),
            UPCAST=interpreting() and x.dtype != torch.float32,
            HAS_BIAS=bias is not None,
            num_warps=shape.warps,
        )
    return y
