"""Scores of a tile of a dense gradient for growth (kernels of `ops.grow_scores`): the tile is read once.

score_tile(tile, ...)   of each group of V rows and column the sum of |gradient|; -1 where it is no candidate
"""

import triton
import triton.language as tl
from torch import Tensor

from .launch import SIZES, check_size, on

_BLOCK = 512
_WARPS = 4


@triton.jit(do_not_specialize=SIZES)
def score_tile_kernel(
    tile: tl.tensor,
    direction: tl.tensor,
    scores: tl.tensor,
    width: tl.int32,
    V: tl.constexpr,
    DIRECTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: BLOCK columns of a group of V rows; sums run in float64, in the order of the rows.

    DIRECTED: a group without a step along `direction` gets -1. NaN stays NaN.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = column < width
    first = tl.program_id(1) * V
    total = tl.zeros((BLOCK,), tl.float64)
    along = tl.zeros((BLOCK,), tl.float64)
    for v in range(V):
        at = (first + v) * width + column
        gradient = tl.load(tile + at, mask=live, other=0.0).to(scores.dtype.element_ty).to(tl.float64)
        total += tl.abs(gradient)
        if DIRECTED:
            step = tl.load(direction + at, mask=live, other=0.0).to(scores.dtype.element_ty).to(tl.float64)
            along += tl.where(gradient > 0, step, tl.where(gradient < 0, -step, 0.0))
    score = total.to(scores.dtype.element_ty).to(tile.dtype.element_ty).to(scores.dtype.element_ty)
    if DIRECTED:
        score = tl.where((along >= 0) & (score == score), -1.0, score)
    tl.store(scores + tl.program_id(1) * width + column, score, mask=live)


@triton.jit(do_not_specialize=SIZES)
def leave_out_active_kernel(
    indptr: tl.tensor, cols: tl.tensor, scores: tl.tensor, first: tl.int32, width: tl.int32, BLOCK: tl.constexpr
) -> None:
    """One program: the active columns of list `first` + its number get -1; NaN stays NaN."""
    group = tl.program_id(0)
    end = tl.load(indptr + first + group + 1)
    scores += group * width
    for start in range(tl.load(indptr + first + group), end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        live = j < end
        column = tl.load(cols + j, mask=live, other=0).to(tl.int32)
        score = tl.load(scores + column, mask=live, other=0.0)
        tl.store(scores + column, tl.where(score == score, -1.0, score), mask=live)


def score_tile(
    tile: Tensor,
    direction: Tensor | None,
    indptr: Tensor,
    cols: Tensor,
    first: int,
    granularity: int,
    scores: Tensor,
) -> None:
    """Fill scores [groups * width], float64 where the tile is and else float32, from a tile [groups * V, width].

    indptr, cols: the active columns of each list, of which the tile's first is number `first`. direction has the
    tile's shape.
    """
    rows, width = tile.shape
    check_size("grow_scores", tile.numel())
    if not tile.numel():
        return
    groups = rows // granularity
    with on(tile):
        score_tile_kernel[(triton.cdiv(width, _BLOCK), groups)](
            tile,
            tile if direction is None else direction,
            scores,
            width,
            V=granularity,
            DIRECTED=direction is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
        leave_out_active_kernel[(groups,)](indptr, cols, scores, first, width, BLOCK=_BLOCK, num_warps=_WARPS)
