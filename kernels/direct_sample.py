"""The gradient to the weights of convolutions with any mask, a nonzero at a time (see `direct`).

direct_sample(gy, x)   dvalues [nnz], in parts that are added in order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import Geometry, accumulator, constants, list_of, origins_of, search_steps, shifts_of, split, unpadded
from .direct import Tile
from .launch import SIZES, check_size, on

SAMPLE = Tile(nonzeros=16, outputs=128, warps=4)


@triton.jit(do_not_specialize=SIZES)
def direct_sample_kernel(
    indptr: tl.tensor,
    cols: tl.tensor,
    gy: tl.tensor,
    x: tl.tensor,
    parts: tl.tensor,
    nnz: tl.int32,
    rows: tl.int32,
    groups: tl.int32,
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
    SEARCH: tl.constexpr,
    ACC: tl.constexpr,
    NONZEROS: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> None:
    """One program: NONZEROS entries of dvalues over `steps` tiles of outputs; parts [splits, clients, nnz]."""
    group = tl.program_id(0) % groups
    part = tl.program_id(0) // groups
    client = tl.program_id(1).to(tl.int64)
    j = group * NONZEROS + tl.arange(0, NONZEROS)
    live = j < nnz
    below, beside, j_at = shifts_of(
        cols, j, live, blocks, high, wide, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X, LANES
    )
    row = list_of(indptr, j, live, rows, SEARCH)
    run = out_high * out_wide * blocks * LANES
    x += client * blocks * channels * high * wide * LANES
    gy += client * rows * run
    acc = tl.zeros((NONZEROS, OUTPUTS), ACC)
    for step in range(steps):
        m = (part * steps + step) * OUTPUTS + tl.arange(0, OUTPUTS)
        inside, top, left, x_at = origins_of(
            m, blocks, wide, out_high, out_wide, STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, LANES
        )
        take = live[:, None] & inside[None, :]
        g = tl.load(gy + (m[None, :] + (row * run)[:, None]), mask=take, other=0.0).to(ACC)
        take &= unpadded(
            top[None, :] + below[:, None], left[None, :] + beside[:, None], high, wide, PADDING_Y, PADDING_X
        )
        acc += g * tl.load(x + (j_at[:, None] + x_at[None, :]), mask=take, other=0.0).to(ACC)
    total = tl.sum(acc, axis=1)
    tl.store(parts + (part * tl.num_programs(1) + client) * nnz + j, total, mask=live)


def direct_sample(gy: Tensor, x: Tensor, indptr: Tensor, cols: Tensor, geometry: Geometry) -> Tensor:
    """dvalues [clients, nnz] from gy [clients, N, H', W', G, L], x [clients, C, H, W, G, L].

    Zeros stand in the lanes without an image.
    """
    rows, nnz = indptr.numel() - 1, cols.numel()
    clients, channels, high, wide, blocks, lanes = x.shape
    size = (gy.shape[2], gy.shape[3])
    outputs = size[0] * size[1] * blocks * lanes
    check_size("direct_sample", x.numel() // clients, gy.numel() // clients)
    if nnz == 0 or outputs == 0:
        return x.new_zeros(clients, nnz)
    groups = triton.cdiv(nnz, SAMPLE.nonzeros)
    splits, steps = split(triton.cdiv(outputs, SAMPLE.outputs), groups * clients)
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    parts = x.new_empty(splits, clients, nnz, dtype=acc)
    with on(x):
        direct_sample_kernel[(groups * splits, clients)](
            indptr,
            cols,
            gy.contiguous(),
            x.contiguous(),
            parts,
            nnz,
            rows,
            groups,
            steps,
            blocks,
            channels,
            high,
            wide,
            *size,
            *constants(geometry),
            LANES=lanes,
            SEARCH=search_steps(rows),
            ACC=accumulator(x.dtype),
            NONZEROS=SAMPLE.nonzeros,
            OUTPUTS=SAMPLE.outputs,
            num_warps=SAMPLE.warps,
        )
    return parts.sum(0).to(x.dtype)
