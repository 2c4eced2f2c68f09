"""The gradient to the weights of convolutions whose mask has strips (see `strip_product`).

strip_sample(gy, x)   packed, in `splits` parts that are added in order     tensor cores
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import Geometry, constants, origins_of, precision, shifts_of, split, unpadded
from .launch import SIZES, check_size, interpreting, on
from .strip_tiles import sample_tile


@triton.jit(do_not_specialize=SIZES)
def strip_sample_kernel(
    starts: tl.tensor,
    cols: tl.tensor,
    gy: tl.tensor,
    x: tl.tensor,
    parts: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
    splits: tl.int32,
    steps: tl.int32,
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
) -> None:
    """One program: the entries of one strip, ENTRIES at a time, over `steps` tiles of outputs of one client.

    parts: float32 [splits, clients, entries, V].
    """
    strip = tl.program_id(0) % strips
    split = tl.program_id(0) // strips
    client = tl.program_id(1)
    begin = tl.load(starts + strip)
    end = tl.load(starts + strip + 1)
    v = tl.arange(0, V)
    row = out_high * out_wide * blocks * LANES
    x_client = x + client.to(tl.int64) * blocks * channels * high * wide * LANES
    g_client = gy + client.to(tl.int64) * strips * V * row
    out = parts + (split * tl.num_programs(1) + client).to(tl.int64) * entries * V
    for first in range(begin, end, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        live = e < end
        below, beside, e_at = shifts_of(
            cols, e, live, blocks, high, wide, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X, LANES
        )
        acc = tl.zeros((ENTRIES, V), tl.float32)
        for step in tl.range(0, steps, num_stages=STAGES):
            m = (split * steps + step) * OUTPUTS + tl.arange(0, OUTPUTS)
            inside, top, left, x_at = origins_of(
                m, blocks, wide, out_high, out_wide, STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, LANES
            )
            take = live[:, None] & inside[None, :]
            take &= unpadded(
                top[None, :] + below[:, None], left[None, :] + beside[:, None], high, wide, PADDING_Y, PADDING_X
            )
            rows = tl.load(x_client + (e_at[:, None] + x_at[None, :]), mask=take, other=0.0)
            g_at = m[:, None] + ((strip * V + v) * row)[None, :]
            g = tl.load(g_client + g_at, mask=inside[:, None], other=0.0)
            if UPCAST:
                rows = rows.to(tl.float32)
                g = g.to(tl.float32)
            acc = tl.dot(rows, g, acc, input_precision=PRECISION)
        tl.store(out + (e[:, None] * V + v[None, :]), acc, mask=live[:, None])


def strip_sample(
    gy: Tensor,
    x: Tensor,
    starts: Tensor,
    cols: Tensor,
    vector: int,
    geometry: Geometry,
    tf32: bool,
) -> Tensor:
    """Weight gradients, float32 [splits, clients, entries, V], in parts that are still to be summed over the splits.

    gy [clients, N, H', W', G, L], x [clients, C, H, W, G, L], zeros in the lanes without an image.
    """
    strips, entries = starts.numel() - 1, cols.numel()
    clients, channels, high, wide, blocks, lanes = x.shape
    size = (gy.shape[2], gy.shape[3])
    outputs = size[0] * size[1] * blocks * lanes
    check_size("strip_sample", x.numel() // clients, gy.numel() // clients)
    shape = sample_tile(vector, x.dtype, entries / max(strips, 1))
    splits, steps = split(triton.cdiv(outputs, shape.outputs), strips * clients)
    if entries == 0 or outputs == 0:
        return x.new_zeros(1, clients, entries, vector, dtype=torch.float32)
    parts = x.new_empty(splits, clients, entries, vector, dtype=torch.float32)
    with on(x):
        strip_sample_kernel[(strips * splits, clients)](
            starts,
            cols,
            gy.contiguous(),
            x.contiguous(),
            parts,
            entries,
            strips,
            splits,
            steps,
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
            num_warps=shape.warps,
        )
    return parts
