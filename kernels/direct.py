"""Convolutions with any mask, a nonzero at a time: exact float32 sums without tensor cores, for low densities.

    direct_product(values, x)      y [N, H', W', G, L] = W * x [C, H, W, G, L] (+ bias)
    direct_transposed(values, gy)  dx [C, H, W, G, L], the gradient to x

The gradient to the weights is in `direct_sample`.
Images stand innermost, so that a nonzero costs aligned runs of G L numbers whatever its tap and the stride (see
`strip_product`). Every tensor has a leading dimension of clients.
Operands are float16, bfloat16, float32 or float64; sums run in float32, or float64 for float64 operands. Each output
element is summed by one program in a fixed order and nothing is atomic: results are bitwise reproducible.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .addresses import Geometry, Sizes, accumulator, constants, outputs_of, taps_of
from .launch import SIZES, check_size, on


@dataclass(frozen=True)
class Tile:
    """What one program does at a time: `nonzeros` x `outputs` elements held by `warps` warps."""

    nonzeros: int
    outputs: int
    warps: int


PRODUCT = Tile(nonzeros=8, outputs=256, warps=4)


@triton.jit(do_not_specialize=SIZES)
def direct_product_kernel(
    values: tl.tensor,
    indptr: tl.tensor,
    cols: tl.tensor,
    perm: tl.tensor,
    source: tl.tensor,
    bias: tl.tensor,
    target: tl.tensor,
    nnz: tl.int32,
    rows: tl.int32,
    blocks: tl.int32,
    channels: tl.int32,
    high: tl.int32,
    wide: tl.int32,
    out_high: tl.int32,
    out_wide: tl.int32,
    all_blocks: tl.int32,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    LANES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    NONZEROS: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> None:
    """One program: OUTPUTS elements of one row of one client's target [rows, out_high, out_wide, all_blocks, L].

    The target's blocks from its first on are as many as the source has; all_blocks is how many stand there.

    TRANSPOSED: source is the gradient of the output, target that of the input; perm says where the values are. Not
    WEIGHTED: every value is 1.
    """
    row = tl.program_id(0) % rows
    tile = tl.program_id(0) // rows
    client = tl.program_id(1).to(tl.int64)
    m = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    lane, block, right, down = outputs_of(m, blocks, out_wide, LANES)
    inside = down < out_high
    source += client * blocks * channels * high * wide * LANES
    values += client * nnz
    image = block * LANES + lane
    begin = tl.load(indptr + row)
    end = tl.load(indptr + row + 1)
    acc = tl.zeros((NONZEROS, OUTPUTS), ACC)
    for first in range(begin, end, NONZEROS):
        j = first + tl.arange(0, NONZEROS)
        live = j < end
        channel, below, beside = taps_of(cols, j, live, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X)
        take = live[:, None] & inside[None, :]
        if TRANSPOSED:
            y = down[None, :] + PADDING_Y - below[:, None]
            x = right[None, :] + PADDING_X - beside[:, None]
            take &= (y >= 0) & (x >= 0) & (y % STRIDE_Y == 0) & (x % STRIDE_X == 0)
            y = y // STRIDE_Y
            x = x // STRIDE_X
            take &= (y < high) & (x < wide)
        else:
            y = down[None, :] * STRIDE_Y - PADDING_Y + below[:, None]
            x = right[None, :] * STRIDE_X - PADDING_X + beside[:, None]
            take &= (y >= 0) & (y < high) & (x >= 0) & (x < wide)
        come = image[None, :] + ((channel * high)[:, None] * wide + y * wide + x) * (blocks * LANES)
        run = tl.load(source + come, mask=take, other=0.0).to(ACC)
        if WEIGHTED:
            at = tl.load(perm + j, mask=live, other=0) if TRANSPOSED else j
            run *= tl.load(values + at, mask=live, other=0.0).to(ACC)[:, None]
        acc += run
    total = tl.sum(acc, axis=0)
    if HAS_BIAS:
        total += tl.load(bias + client * rows + row).to(ACC)
    target += (client * rows + row) * out_high * out_wide * all_blocks * LANES
    to = ((down * out_wide + right) * all_blocks + block) * LANES + lane
    tl.store(target + to, total.to(target.dtype.element_ty), mask=inside)


def direct_product(
    values: Tensor, indptr: Tensor, cols: Tensor, x: Tensor, bias: Tensor | None, geometry: Geometry, size: Sizes
) -> Tensor:
    """y [clients, N, *size, G, L] from x [clients, C, H, W, G, L] and values [clients, nnz].

    indptr int32 [N + 1], cols int32 [nnz], (c * kh + ky) * kw + kx; bias [clients, N] or None.
    """
    target = x.new_empty(x.shape[0], indptr.numel() - 1, *size, *x.shape[4:])
    return _product(values, indptr, cols, None, x, bias, geometry, target)


def direct_transposed(
    values: Tensor, t_indptr: Tensor, t_cols: Tensor, t_perm: Tensor, gy: Tensor, geometry: Geometry, size: Sizes
) -> Tensor:
    """dx [clients, C, *size, G, L] from gy [clients, N, H', W', G, L] and values [clients, nnz].

    t_indptr int32 [C + 1], t_cols int32 [nnz], (n * kh + ky) * kw + kx, t_perm int32 [nnz], places in the values.
    """
    target = gy.new_empty(gy.shape[0], t_indptr.numel() - 1, *size, *gy.shape[4:])
    return _product(values, t_indptr, t_cols, t_perm, gy, None, geometry, target)


def gather_entries(
    spread: Tensor, t_starts: Tensor, t_taps: Tensor, geometry: Geometry, target: Tensor, all_blocks: int
) -> Tensor:
    """Fill target [C, H, W, G, L]: of each channel the sum of its entries' images, each moved back by its tap.

    spread [entries, H', W', G, L]; t_starts int32 [C + 1], t_taps int32 [entries], (entry * kh + ky) * kw + kx; target
    is contiguous, or G blocks of a contiguous tensor of `all_blocks`.
    """
    return _product(None, t_starts, t_taps, t_taps, spread[None], None, geometry, target[None], all_blocks)


def _product(
    values: Tensor | None,
    indptr: Tensor,
    cols: Tensor,
    perm: Tensor | None,
    source: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    target: Tensor,
    all_blocks: int | None = None,
) -> Tensor:
    clients, nnz = (1, cols.numel()) if values is None else values.shape
    rows, size = indptr.numel() - 1, (target.shape[2], target.shape[3])
    _, channels, high, wide, blocks, lanes = source.shape
    check_size("direct_product", source.numel() // clients, target.numel() // clients)
    if target.numel() == 0:
        return target
    tiles = triton.cdiv(target.numel() // (clients * rows), PRODUCT.outputs)
    with on(source):
        direct_product_kernel[(rows * tiles, clients)](
            source if values is None else values.contiguous(),
            indptr,
            cols,
            cols if perm is None else perm,
            source.contiguous(),
            source if bias is None else bias.contiguous(),
            target,
            nnz,
            rows,
            blocks,
            channels,
            high,
            wide,
            *size,
            blocks if all_blocks is None else all_blocks,
            *constants(geometry),
            LANES=lanes,
            TRANSPOSED=perm is not None,
            WEIGHTED=values is not None,
            HAS_BIAS=bias is not None,
            ACC=accumulator(source.dtype),
            NONZEROS=PRODUCT.nonzeros,
            OUTPUTS=PRODUCT.outputs,
            num_warps=PRODUCT.warps,
        )
    return target
