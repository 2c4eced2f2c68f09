"""Activations packed as a bitmap and the values that are kept (`fedsparse.ops.pack_activation`).

    pack(x, count, dtype)               of each row of x [B, R] the `count` entries of largest magnitude that are not 0
    unpack(bits, values, starts, run)   the rows, zeros elsewhere

Each program has `steps` blocks of one row. Magnitudes are the bits of a float without its sign, as integers (of half
types, of the float32 that they are). The magnitude of the last entry that is kept is found a byte at a time from the
top, as `topk` finds a score; where it is 0, all that is not 0 is kept. Entries equal to it are kept from the lowest
index on. Then every program knows from the counts of those before it where its values go. Nothing is atomic.

The host waits once, for the number of values, where it is not known before.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import flags_at, places_before
from .launch import SIZES, check_size, on
from .topk import compared, counted, narrow_kernel

_BLOCK = 1024
_PROGRAMS = 1024
_WARPS = 4
_ROWS = 16  # programs whose counts `narrow_kernel` adds at a time


@triton.jit
def magnitudes_of(x: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Integers in the order of the magnitudes; NaN above infinity."""
    if BITS == 64:
        bits = x.to(tl.int64, bitcast=True)
    else:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return bits & (((bits * 0 + 1) << (BITS - 2)) - 1 + ((bits * 0 + 1) << (BITS - 2)))


@triton.jit(do_not_specialize=SIZES)
def count_digits_kernel(
    x: tl.tensor,
    keys: tl.tensor,
    counts: tl.tensor,
    run: tl.int32,
    parts: tl.int32,
    steps: tl.int32,
    shift: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: counts [programs, 256] of the byte at `shift` of the magnitudes that share the higher bytes."""
    program = tl.program_id(0)
    row = program // parts
    x += row.to(tl.int64) * run
    found = tl.load(keys + row)
    total = tl.zeros((256,), tl.int32)
    for step in range(steps):
        at = (program % parts * steps + step) * BLOCK + tl.arange(0, BLOCK)
        key = magnitudes_of(tl.load(x + at, mask=at < run, other=0.0), BITS)
        total = counted(total, key, found, shift, at < run)
    tl.store(counts + program * 256 + tl.arange(0, 256), total)


@triton.jit(do_not_specialize=SIZES)
def tally_magnitudes_kernel(
    x: tl.tensor,
    keys: tl.tensor,
    above: tl.tensor,
    equal: tl.tensor,
    run: tl.int32,
    parts: tl.int32,
    steps: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: how many magnitudes of its part are above the row's key, and equal to it."""
    program = tl.program_id(0)
    row = program // parts
    x += row.to(tl.int64) * run
    found = tl.load(keys + row)
    higher = tl.zeros((BLOCK,), tl.int32)
    same = tl.zeros((BLOCK,), tl.int32)
    for step in range(steps):
        at = (program % parts * steps + step) * BLOCK + tl.arange(0, BLOCK)
        key = magnitudes_of(tl.load(x + at, mask=at < run, other=0.0), BITS)
        is_higher, is_same = compared(key, found, at < run)
        higher += is_higher
        same += is_same
    tl.store(above + program, tl.sum(higher, axis=0))
    tl.store(equal + program, tl.sum(same, axis=0))


@triton.jit
def stored_as(entry: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """As the dtype; bfloat16 to the nearest, ties to even, NaN stays NaN: by integers, the interpreter cuts off."""
    if entry.dtype == tl.float32 and dtype == tl.bfloat16:
        bits = entry.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(entry != entry, (bits >> 16) | 0x40, rounded).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return entry.to(dtype)


@triton.jit(do_not_specialize=SIZES)
def pack_kernel(
    x: tl.tensor,
    keys: tl.tensor,
    lefts: tl.tensor,
    firsts: tl.tensor,
    sames: tl.tensor,
    bits: tl.tensor,
    values: tl.tensor,
    run: tl.int32,
    parts: tl.int32,
    steps: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: bits and values of its part; firsts, sames: where its values begin, equal ones before it."""
    program = tl.program_id(0)
    row = program // parts
    x += row.to(tl.int64) * run
    bits += row.to(tl.int64) * ((run + 7) // 8)
    found = tl.load(keys + row)
    left = tl.load(lefts + row)
    values += tl.load(firsts + program)
    same = tl.load(sames + program)
    kept = 0
    byte = tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)
    for step in range(steps):
        begin = (program % parts * steps + step) * BLOCK
        at = begin + byte[:, None] * 8 + bit[None, :]
        entry = tl.load(x + at, mask=at < run, other=0.0)
        is_higher, is_same = compared(magnitudes_of(entry, BITS), found, at < run)
        taken = (is_higher > 0) | ((is_same > 0) & (same + places_before(is_same) < left))
        flags = taken.to(tl.int32)
        tl.store(values + kept + places_before(flags), stored_as(entry, values.dtype.element_ty), mask=taken)
        packed = tl.sum(flags << bit[None, :], axis=1)
        tl.store(bits + begin // 8 + byte, packed.to(tl.uint8), mask=begin + byte * 8 < run)
        kept += tl.sum(tl.sum(flags, axis=1), axis=0)
        same += tl.sum(tl.sum(is_same, axis=1), axis=0)


@triton.jit(do_not_specialize=SIZES)
def count_bits_kernel(
    bits: tl.tensor,
    counts: tl.tensor,
    run: tl.int32,
    parts: tl.int32,
    steps: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    """One program: the bits that are set in its part of a row."""
    program = tl.program_id(0)
    bits += (program // parts).to(tl.int64) * ((run + 7) // 8)
    total = 0
    for step in range(steps):
        flags = flags_at(bits, (program % parts * steps + step) * BLOCK, run, BLOCK)
        total += tl.sum(tl.sum(flags, axis=1), axis=0)
    tl.store(counts + program, total)


@triton.jit(do_not_specialize=SIZES)
def unpack_kernel(
    bits: tl.tensor,
    values: tl.tensor,
    firsts: tl.tensor,
    x: tl.tensor,
    run: tl.int32,
    parts: tl.int32,
    steps: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    """One program: its part of a row; firsts: where its values begin."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    x += row * run
    bits += row * ((run + 7) // 8)
    values += tl.load(firsts + program)
    kept = 0
    for step in range(steps):
        begin = (program % parts * steps + step) * BLOCK
        at = begin + tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
        flags = flags_at(bits, begin, run, BLOCK)
        entry = tl.load(values + kept + places_before(flags), mask=flags > 0, other=0.0)
        tl.store(x + at, entry.to(x.dtype.element_ty), mask=at < run)
        kept += tl.sum(tl.sum(flags, axis=1), axis=0)


def parts_of(rows: int, run: int, programs: int) -> tuple[int, int]:
    """(parts, blocks of each) of a row, for about that many programs in all."""
    blocks = triton.cdiv(run, _BLOCK)
    steps = max(1, triton.cdiv(rows * blocks, programs))
    return max(1, triton.cdiv(blocks, steps)), steps


def _before(counts: Tensor) -> Tensor:
    """Of each part the sum of those before it in its row, [B, parts]."""
    return counts.cumsum(1) - counts


def _thresholds(x: Tensor, count: int, parts: int, steps: int, bits: int) -> tuple[Tensor, Tensor]:
    """Of each row the magnitude of the entry of that rank, int64 [B], and how many equal to it are kept, int32 [B]."""
    rows, run = x.shape
    keys = torch.zeros(rows, dtype=torch.int64, device=x.device)
    lefts = torch.full((rows,), count, dtype=torch.int32, device=x.device)
    firsts = torch.arange(rows + 1, dtype=torch.int32, device=x.device) * parts
    counts = torch.empty(rows * parts, 256, dtype=torch.int32, device=x.device)
    how = {"BITS": bits, "BLOCK": _BLOCK, "num_warps": _WARPS}
    for shift in range(bits - 8, -1, -8):
        count_digits_kernel[(rows * parts,)](x, keys, counts, run, parts, steps, shift, **how)
        narrow_kernel[(rows,)](counts, firsts, keys, lefts, shift, ROWS=_ROWS, num_warps=_WARPS)
    return keys, torch.where(keys > 0, lefts, 0)


def pack(x: Tensor, count: int, dtype: torch.dtype, programs: int = _PROGRAMS) -> tuple[Tensor, Tensor, Tensor]:
    """(bits uint8 [B, ceil(R / 8)], values of `dtype` [kept], starts int64 [B + 1]) of x [B, R], contiguous.

    0 <= count <= R; about so many programs share the work. ValueError where a row has 2^31 entries or more.
    """
    rows, run = x.shape
    check_size("pack_activation", run)
    bits = torch.zeros(rows, (run + 7) // 8, dtype=torch.uint8, device=x.device)
    starts = torch.zeros(rows + 1, dtype=torch.int64, device=x.device)
    if not (count and rows):
        return bits, x.new_empty(0, dtype=dtype), starts
    parts, steps = parts_of(rows, run, programs)
    width = 64 if x.dtype == torch.float64 else 32
    how = {"BITS": width, "BLOCK": _BLOCK, "num_warps": _WARPS}
    above, equal = torch.empty(2, rows, parts, dtype=torch.int32, device=x.device)
    with on(x):
        if count < run:
            keys, lefts = _thresholds(x, count, parts, steps, width)
        else:
            keys, lefts = starts.new_zeros(rows), above.new_zeros(rows)
        tally_magnitudes_kernel[(rows * parts,)](x, keys, above, equal, run, parts, steps, **how)
        same = _before(equal)
        kept = above + (torch.minimum(same + equal, lefts[:, None]) - torch.minimum(same, lefts[:, None]))
        torch.cumsum(kept.sum(1), 0, out=starts[1:])
        firsts = starts[:-1, None] + _before(kept)
        values = x.new_empty(int(starts[-1]), dtype=dtype)
        pack_kernel[(rows * parts,)](x, keys, lefts, firsts, same, bits, values, run, parts, steps, **how)
    return bits, values, starts


def unpack(
    bits: Tensor, values: Tensor, starts: Tensor, run: int, dtype: torch.dtype, programs: int = _PROGRAMS
) -> Tensor:
    """Rows [B, R] of `dtype` of what `pack` made; the host does not wait."""
    rows = bits.shape[0]
    x = values.new_empty(rows, run, dtype=dtype)
    if not x.numel():
        return x
    parts, steps = parts_of(rows, run, programs)
    counts = torch.empty(rows, parts, dtype=torch.int32, device=x.device)
    with on(x):
        count_bits_kernel[(rows * parts,)](bits, counts, run, parts, steps, BLOCK=_BLOCK, num_warps=_WARPS)
        firsts = starts[:-1, None] + _before(counts)
        unpack_kernel[(rows * parts,)](bits, values, firsts, x, run, parts, steps, BLOCK=_BLOCK, num_warps=_WARPS)
    return x
