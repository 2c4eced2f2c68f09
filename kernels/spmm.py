"""Products with a sparse weight W [N, C] in CSR form, for linear layers on CUDA.

    csr_product(values, indptr, cols, perm, x)   y[b, n] = sum_j values[j] x[b, cols[j]]    spmm, spmm_t
    csr_sample(g, x, indptr, cols)               dv[j]   = sum_b g[b, n(j)] x[b, cols[j]]   sddmm

spmm_t is csr_product over the transposed indices. Operands are float16, bfloat16, float32 or float64; sums
run in float32, or float64 for float64 operands. Every output element is summed by one program in a fixed
order and nothing is atomic: results are bitwise reproducible.

Activations are read transposed ([C, B]): neighbouring lanes are neighbouring samples, so that each nonzero
costs one coalesced run of the batch instead of one 32-byte sector a sample.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .addresses import accumulator, list_of, search_steps
from .launch import on


@dataclass(frozen=True)
class Tile:
    """How much one program does at a time: `nonzeros` x `batch` elements held by `warps` warps."""

    nonzeros: int
    batch: int
    warps: int


_LARGE_BATCH = 64
_TILES = {
    # (operation, batch is large): a small batch leaves lanes to the nonzeros.
    ("product", False): Tile(nonzeros=32, batch=32, warps=2),
    ("product", True): Tile(nonzeros=16, batch=64, warps=2),
    ("sample", False): Tile(nonzeros=64, batch=16, warps=4),
    ("sample", True): Tile(nonzeros=32, batch=64, warps=4),
}


def tile(operation: str, batch: int) -> Tile:
    """Return the tile of "product" or "sample" for a batch of that many samples."""
    return _TILES[operation, batch >= _LARGE_BATCH]


@triton.jit
def csr_product_kernel(
    values: tl.tensor,
    indptr: tl.tensor,
    cols: tl.tensor,
    perm: tl.tensor,
    x_t: tl.tensor,
    y: tl.tensor,
    batch: tl.int32,
    rows: tl.int32,
    HAS_PERM: tl.constexpr,
    ACC: tl.constexpr,
    NONZEROS: tl.constexpr,
    BATCH: tl.constexpr,
) -> None:
    """One program: row n of W times BATCH samples. x_t is [C, batch], y is [batch, rows]."""
    n = tl.program_id(0)
    samples = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    inside = samples < batch
    begin = tl.load(indptr + n)
    end = tl.load(indptr + n + 1)
    # Partial sums stay apart, one per nonzero of a chunk, and meet once after the loop.
    acc = tl.zeros((NONZEROS, BATCH), ACC)
    for start in range(begin, end, NONZEROS):
        j = start + tl.arange(0, NONZEROS)
        live = j < end
        col = tl.load(cols + j, mask=live, other=0)
        at = tl.load(perm + j, mask=live, other=0) if HAS_PERM else j
        value = tl.load(values + at, mask=live, other=0).to(ACC)
        run = x_t + col.to(tl.int64)[:, None] * batch + samples[None, :]
        acc += value[:, None] * tl.load(run, mask=live[:, None] & inside[None, :], other=0).to(ACC)
    total = tl.sum(acc, axis=0)
    tl.store(y + samples.to(tl.int64) * rows + n, total, mask=inside)


@triton.jit
def csr_sample_kernel(
    g_t: tl.tensor,
    x_t: tl.tensor,
    indptr: tl.tensor,
    cols: tl.tensor,
    dvalues: tl.tensor,
    batch: tl.int32,
    rows: tl.int32,
    nnz: tl.int32,
    STEPS: tl.constexpr,
    ACC: tl.constexpr,
    NONZEROS: tl.constexpr,
    BATCH: tl.constexpr,
) -> None:
    """One program: NONZEROS consecutive entries of dvalues. g_t is [rows, batch], x_t is [C, batch]."""
    j = tl.program_id(0).to(tl.int64) * NONZEROS + tl.arange(0, NONZEROS)
    live = j < nnz
    col = tl.load(cols + j, mask=live, other=0)
    row = list_of(indptr, j, live, rows, STEPS)
    g_run = g_t + row.to(tl.int64)[:, None] * batch
    x_run = x_t + col.to(tl.int64)[:, None] * batch
    acc = tl.zeros((NONZEROS, BATCH), ACC)
    for start in range(0, batch, BATCH):
        samples = start + tl.arange(0, BATCH)
        take = live[:, None] & (samples < batch)[None, :]
        g = tl.load(g_run + samples[None, :], mask=take, other=0).to(ACC)
        acc += g * tl.load(x_run + samples[None, :], mask=take, other=0).to(ACC)
    total = tl.sum(acc, axis=1)
    tl.store(dvalues + j, total, mask=live)


def csr_product(values: Tensor, indptr: Tensor, cols: Tensor, perm: Tensor | None, x: Tensor) -> Tensor:
    """Return y [B, N] with y[b, n] = sum over the nonzeros j of row n of values[perm[j]] x[b, cols[j]].

    values [nnz] and x [B, C] of one floating dtype; indptr int32 [N+1], cols int32 [nnz]; perm int32 [nnz]
    gives the position in `values` of each nonzero (the transpose's), None where they are in order.
    """
    batch, rows = x.shape[0], indptr.numel() - 1
    y = x.new_empty(batch, rows)
    if y.numel() == 0:
        return y
    shape = tile("product", batch)
    grid = (rows, triton.cdiv(batch, shape.batch))
    with on(x):
        csr_product_kernel[grid](
            values.contiguous(),
            indptr,
            cols,
            cols if perm is None else perm,
            x.t().contiguous(),
            y,
            batch,
            rows,
            HAS_PERM=perm is not None,
            ACC=accumulator(x.dtype),
            NONZEROS=shape.nonzeros,
            BATCH=shape.batch,
            num_warps=shape.warps,
        )
    return y


def csr_sample(g: Tensor, x: Tensor, indptr: Tensor, cols: Tensor) -> Tensor:
    """Return dvalues [nnz] with dvalues[j] = sum_b g[b, n(j)] x[b, cols[j]], n(j) the row of nonzero j.

    g [B, N] and x [B, C] of one floating dtype; indptr int32 [N+1], cols int32 [nnz].
    """
    batch, rows, nnz = x.shape[0], indptr.numel() - 1, cols.numel()
    dvalues = x.new_empty(nnz)
    if nnz == 0:
        return dvalues
    shape = tile("sample", batch)
    with on(x):
        csr_sample_kernel[(triton.cdiv(nnz, shape.nonzeros),)](
            g.t().contiguous(),
            x.t().contiguous(),
            indptr,
            cols,
            dvalues,
            batch,
            rows,
            nnz,
            STEPS=search_steps(rows),
            ACC=accumulator(x.dtype),
            NONZEROS=shape.nonzeros,
            BATCH=shape.batch,
            num_warps=shape.warps,
        )
    return dvalues
