"""The first half of the gradient to the input of convolutions whose mask has strips (see `strip_product`).

    strip_spread(packed, gy)   of each entry, its V weights times the V rows of gy     tensor cores

The other half is `direct.gather_entries`, which adds up the entries of each input channel: V times less to move than a
gather for every weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import precision
from .launch import SIZES, check_size, interpreting, on
from .strip_tiles import spread_tile


@triton.jit(do_not_specialize=SIZES)
def strip_spread_kernel(
    packed: tl.tensor,
    starts: tl.tensor,
    gy: tl.tensor,
    spread: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
    plane: tl.int32,
    blocks: tl.int32,
    all_blocks: tl.int32,
    LANES: tl.constexpr,
    V: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ENTRIES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One program: OUTPUTS elements of the V rows of one strip's gy, times the weights of all its entries.

    gy: one client's [strips * V, plane, all_blocks, L], from the first of the blocks on.
    spread [entries, plane, blocks, L].
    """
    strip = tl.program_id(0) % strips
    tile = tl.program_id(0) // strips
    m = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    row = plane * blocks * LANES
    inside = m < row
    v = tl.arange(0, V)
    n_at = (strip * V + v) * plane * all_blocks * LANES
    g_at = (m // LANES // blocks * all_blocks + m // LANES % blocks) * LANES + m % LANES
    g = tl.load(gy + (g_at[:, None] + n_at[None, :]), mask=inside[:, None], other=0.0)
    if UPCAST:
        g = g.to(tl.float32)
    begin = tl.load(starts + strip)
    end = tl.load(starts + strip + 1)
    for first in tl.range(begin, end, ENTRIES, num_stages=2):
        e = first + tl.arange(0, ENTRIES)
        live = e < end
        w = tl.load(packed + (e[None, :] * V + v[:, None]), mask=live[None, :], other=0.0)
        if UPCAST:
            w = w.to(tl.float32)
        u = tl.dot(g, w, input_precision=PRECISION)
        at = m[:, None] + (e * row)[None, :]
        tl.store(spread + at, u.to(spread.dtype.element_ty), mask=inside[:, None] & live[None, :])


def strip_spread(packed: Tensor, starts: Tensor, gy: Tensor, all_blocks: int, tf32: bool) -> Tensor:
    """u [entries, H', W', G, L] with u[e] = sum_v packed[e, v] gy[strip(e) V + v], in gy's dtype.

    packed [entries, V] of one client; gy [N, H', W', G, L] is contiguous, or G blocks of a contiguous tensor of
    `all_blocks`.
    """
    entries, vector = packed.shape
    _, high, wide, blocks, lanes = gy.shape
    strips = starts.numel() - 1
    spread = gy.new_empty(entries, high, wide, blocks, lanes)
    check_size("strip_spread", gy.numel() // max(blocks, 1) * all_blocks, spread.numel())
    if spread.numel() == 0:
        return spread
    shape = spread_tile(vector, gy.dtype, entries / strips)
    tiles = triton.cdiv(blocks * high * wide * lanes, shape.outputs)
    with on(gy):
        strip_spread_kernel[(strips * tiles,)](
            packed,
            starts,
            gy,
            spread,
            entries,
            strips,
            high * wide,
            blocks,
            all_blocks,
            LANES=lanes,
            V=vector,
            OUTPUTS=shape.outputs,
            ENTRIES=shape.entries,
            PRECISION=precision(gy.dtype, tf32),
            UPCAST=interpreting() and gy.dtype != torch.float32,
            num_warps=shape.warps,
        )
    return spread
