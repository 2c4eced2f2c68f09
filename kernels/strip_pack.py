"""The values of a mask with strips, which stand row by row, to and from the strips' dense matrices.

pack_strips, unpack_strips   values [nnz] to and from packed [entries, V]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import list_of, search_steps
from .launch import SIZES, on

_MOVED = 32  # entries that a program moves


@triton.jit
def values_at(
    starts: tl.tensor, e: tl.tensor, live: tl.tensor, strips: tl.int32, STEPS: tl.constexpr, V: tl.constexpr
) -> tl.tensor:
    """Positions [entries, V] of the entries e in the values, which stand row by row: STEPS halvings find the strip."""
    low = list_of(starts, e, live, strips, STEPS)
    begin = tl.load(starts + low, mask=live, other=0)
    count = tl.load(starts + low + 1, mask=live, other=0) - begin
    return (begin * V + e - begin)[:, None] + tl.arange(0, V)[None, :] * count[:, None]


@triton.jit(do_not_specialize=SIZES)
def pack_strips_kernel(
    values: tl.tensor,
    starts: tl.tensor,
    packed: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
    STEPS: tl.constexpr,
    V: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """One program: ENTRIES entries of one client."""
    e = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    client = tl.program_id(1).to(tl.int64) * entries * V
    live = e < entries
    at = values_at(starts, e, live, strips, STEPS, V)
    value = tl.load(values + client + at, mask=live[:, None], other=0.0)
    to = e[:, None] * V + tl.arange(0, V)[None, :]
    tl.store(packed + client + to, value.to(packed.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=SIZES)
def unpack_strips_kernel(
    parts: tl.tensor,
    starts: tl.tensor,
    values: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
    splits: tl.int32,
    STEPS: tl.constexpr,
    V: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """One program: ENTRIES entries of one client, summed over the splits in their order."""
    e = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    client = tl.program_id(1).to(tl.int64) * entries * V
    live = e < entries
    at = values_at(starts, e, live, strips, STEPS, V)
    come = e[:, None] * V + tl.arange(0, V)[None, :]
    total = tl.zeros((ENTRIES, V), tl.float32)
    part = parts + client
    for _ in range(splits):
        total += tl.load(part + come, mask=live[:, None], other=0.0)
        part += tl.num_programs(1).to(tl.int64) * entries * V
    tl.store(values + client + at, total.to(values.dtype.element_ty), mask=live[:, None])


def pack_strips(values: Tensor, starts: Tensor, vector: int, dtype: torch.dtype) -> Tensor:
    """Packed [clients, entries, V] of that dtype from values [clients, nnz]; starts int32 [strips + 1]."""
    clients, nnz = values.shape
    packed = torch.empty(clients, nnz // vector, vector, dtype=dtype, device=values.device)
    if packed.numel():
        strips = starts.numel() - 1
        with on(values):
            pack_strips_kernel[(triton.cdiv(nnz // vector, _MOVED), clients)](
                values.contiguous(),
                starts,
                packed,
                nnz // vector,
                strips,
                STEPS=search_steps(strips),
                V=vector,
                ENTRIES=_MOVED,
            )
    return packed


def unpack_strips(parts: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """Values [clients, nnz] of that dtype from parts [splits, clients, entries, V], summed over the splits."""
    splits, clients, entries, vector = parts.shape
    values = torch.empty(clients, entries * vector, dtype=dtype, device=parts.device)
    if values.numel():
        strips = starts.numel() - 1
        with on(parts):
            unpack_strips_kernel[(triton.cdiv(entries, _MOVED), clients)](
                parts,
                starts,
                values,
                entries,
                strips,
                splits,
                STEPS=search_steps(strips),
                V=vector,
                ENTRIES=_MOVED,
            )
    return values
