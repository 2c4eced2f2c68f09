"""The largest scores of each segment by radix select: exact counts, ties to the lower index, in any order of launches.

    select(scores, sizes, counts)   of segment i, sizes[i] long, the places of the counts[i] largest

Scores become unsigned keys of the same order (-0 and +0 one key, NaN above all others). The key of the last score that
is taken is found a byte at a time from the top: `count_bytes_kernel` counts, among the keys that share the bytes found
so far, those of each next byte, `narrow_kernel` picks the byte and how many of the keys that have it are still to take.
Then every program knows from the `tally_kernel`s before it where its places go.

The host waits for nothing, and nothing is atomic in global memory.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import SIZES, on

_BLOCK = 1024
_PROGRAMS = 1024
_WARPS = 4
_ROWS = 16  # programs whose counts `narrow_kernel` adds at a time
_LIMIT = 2**30


@triton.jit
def keys_of(scores: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Unsigned keys in the order of the scores."""
    if BITS == 64:
        bits = scores.to(tl.uint64, bitcast=True)
    else:
        bits = scores.to(tl.uint32, bitcast=True)
    sign = (bits * 0 + 1) << (BITS - 1)
    highest = sign | (sign - 1)
    keys = tl.where((bits & sign) != 0, bits ^ highest, bits | sign)
    keys = tl.where(scores == 0, sign, keys)
    return tl.where(scores != scores, highest, keys)


@triton.jit
def counted(total: tl.tensor, keys: tl.tensor, found: tl.tensor, shift: tl.tensor, live: tl.tensor) -> tl.tensor:
    """total [256] and the live keys' bytes at `shift`, of those whose higher bytes are those of `found`."""
    keys = keys >> shift
    live &= (keys >> 8) == (found.to(keys.dtype) >> shift) >> 8
    return total + tl.histogram((keys & 255).to(tl.int32), 256, mask=live)


@triton.jit
def compared(keys: tl.tensor, found: tl.tensor, live: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Whether the live keys are above `found`, and whether equal: int32, 0 or 1."""
    found = found.to(keys.dtype)
    return (live & (keys > found)).to(tl.int32), (live & (keys == found)).to(tl.int32)


@triton.jit
def part_of(
    segments: tl.tensor, begins: tl.tensor, ends: tl.tensor, keys: tl.tensor, steps: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of this program its segment, where its part begins and ends, and the segment's key so far."""
    segment = tl.load(segments + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    end = tl.minimum(tl.load(ends + segment), begin + steps * BLOCK)
    return segment, begin, end, tl.load(keys + segment)


@triton.jit(do_not_specialize=SIZES)
def count_bytes_kernel(
    scores: tl.tensor,
    segments: tl.tensor,
    begins: tl.tensor,
    ends: tl.tensor,
    keys: tl.tensor,
    counts: tl.tensor,
    steps: tl.int32,
    shift: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: counts [programs, 256] of the byte at `shift` in its part of a segment."""
    program = tl.program_id(0)
    _, begin, end, found = part_of(segments, begins, ends, keys, steps, BLOCK)
    total = tl.zeros((256,), tl.int32)
    for step in range(steps):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        key = keys_of(tl.load(scores + at, mask=at < end, other=0.0), BITS)
        total = counted(total, key, found, shift, at < end)
    tl.store(counts + program * 256 + tl.arange(0, 256), total)


@triton.jit(do_not_specialize=SIZES)
def narrow_kernel(
    counts: tl.tensor,
    firsts: tl.tensor,
    keys: tl.tensor,
    lefts: tl.tensor,
    shift: tl.int32,
    ROWS: tl.constexpr,
) -> None:
    """One program: the byte at `shift` of a segment's key, and how many of the keys that have it are left to take."""
    segment = tl.program_id(0)
    last = tl.load(firsts + segment + 1)
    byte = tl.arange(0, 256)
    total = tl.zeros((ROWS, 256), tl.int32)
    for first in range(tl.load(firsts + segment), last, ROWS):
        program = first + tl.arange(0, ROWS)
        at = program[:, None] * 256 + byte[None, :]
        total += tl.load(counts + at, mask=(program < last)[:, None], other=0)
    of_byte = tl.sum(total, axis=0)
    left = tl.load(lefts + segment)
    from_byte = tl.sum(of_byte, axis=0) - tl.cumsum(of_byte, axis=0) + of_byte
    chosen = tl.sum((from_byte >= left).to(tl.int32), axis=0) - 1
    tl.store(lefts + segment, left - tl.sum(tl.where(byte > chosen, of_byte, 0), axis=0))
    tl.store(keys + segment, tl.load(keys + segment) | (chosen.to(tl.int64) << shift))


@triton.jit(do_not_specialize=SIZES)
def tally_kernel(
    scores: tl.tensor,
    segments: tl.tensor,
    begins: tl.tensor,
    ends: tl.tensor,
    keys: tl.tensor,
    above: tl.tensor,
    equal: tl.tensor,
    steps: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: how many keys of its part are above the segment's key, and equal to it."""
    program = tl.program_id(0)
    _, begin, end, found = part_of(segments, begins, ends, keys, steps, BLOCK)
    higher = tl.zeros((BLOCK,), tl.int32)
    same = tl.zeros((BLOCK,), tl.int32)
    for step in range(steps):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        is_higher, is_same = compared(keys_of(tl.load(scores + at, mask=at < end, other=0.0), BITS), found, at < end)
        higher += is_higher
        same += is_same
    tl.store(above + program, tl.sum(higher, axis=0))
    tl.store(equal + program, tl.sum(same, axis=0))


@triton.jit(do_not_specialize=SIZES)
def offsets_kernel(firsts: tl.tensor, above: tl.tensor, equal: tl.tensor, BLOCK: tl.constexpr) -> None:
    """One program: of each program of a segment the numbers of keys above and equal in those before it, in place."""
    segment = tl.program_id(0)
    last = tl.load(firsts + segment + 1)
    higher = 0
    same = 0
    for first in range(tl.load(firsts + segment), last, BLOCK):
        program = first + tl.arange(0, BLOCK)
        own = tl.load(above + program, mask=program < last, other=0)
        tl.store(above + program, higher + tl.cumsum(own, axis=0) - own, mask=program < last)
        higher += tl.sum(own, axis=0)
        own = tl.load(equal + program, mask=program < last, other=0)
        tl.store(equal + program, same + tl.cumsum(own, axis=0) - own, mask=program < last)
        same += tl.sum(own, axis=0)


@triton.jit(do_not_specialize=SIZES)
def take_kernel(
    scores: tl.tensor,
    segments: tl.tensor,
    begins: tl.tensor,
    ends: tl.tensor,
    keys: tl.tensor,
    lefts: tl.tensor,
    above: tl.tensor,
    equal: tl.tensor,
    starts: tl.tensor,
    places: tl.tensor,
    steps: tl.int32,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: the places that its part gives, from where those of the programs before it end."""
    program = tl.program_id(0)
    segment, begin, end, found = part_of(segments, begins, ends, keys, steps, BLOCK)
    left = tl.load(lefts + segment)
    higher = tl.load(above + program)
    same = tl.load(equal + program)
    places += tl.load(starts + segment)
    for step in range(steps):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        is_higher, is_same = compared(keys_of(tl.load(scores + at, mask=at < end, other=0.0), BITS), found, at < end)
        higher_before = higher + tl.cumsum(is_higher, axis=0) - is_higher
        same_before = same + tl.cumsum(is_same, axis=0) - is_same
        taken = (is_higher > 0) | ((is_same > 0) & (same_before < left))
        to = higher_before + tl.minimum(same_before, left)
        tl.store(places + to, at.to(tl.int64), mask=taken)
        higher += tl.sum(is_higher, axis=0)
        same += tl.sum(is_same, axis=0)


@lru_cache(maxsize=64)
def _parts(sizes: tuple[int, ...], step: int, device: torch.device) -> tuple[Tensor, ...]:
    """int32: of each program its segment and where it begins; of each segment where it ends; its first program."""
    segments: list[int] = []
    begins: list[int] = []
    ends: list[int] = []
    firsts, start = [0], 0
    for i, size in enumerate(sizes):
        parts = range(start, start + size, step)
        segments += [i] * len(parts)
        begins += parts
        start += size
        ends.append(start)
        firsts.append(len(begins))
    return tuple(_sent(each, device) for each in (segments, begins, ends, firsts))


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """An int32 tensor there, from pinned memory: the host does not wait."""
    here = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda")
    return here.to(device, non_blocking=True)


def select(scores: Tensor, sizes: Sequence[int], counts: Sequence[int], programs: int = _PROGRAMS) -> Tensor:
    """Places in the whole of scores, int64 [sum(counts)], sorted within each segment, and so over all.

    scores float32 or float64 [sum(sizes)], contiguous; 0 <= counts[i] <= sizes[i]; about so many programs share the
    work. ValueError above 2^30 scores.
    """
    if scores.numel() > _LIMIT:
        raise ValueError(f"topk: {scores.numel()} scores are more than 2^30.")
    places = torch.empty(sum(counts), dtype=torch.int64, device=scores.device)
    if not places.numel():
        return places
    steps = max(1, triton.cdiv(scores.numel(), _BLOCK * programs))
    segments, begins, ends, firsts = _parts(tuple(sizes), steps * _BLOCK, scores.device)
    ways = [sum(counts[:i]) for i in range(len(counts))]
    lefts, starts = _sent([*counts, *ways], scores.device).split(len(counts))
    bits, parts = 8 * scores.element_size(), len(begins)
    keys = torch.zeros(len(counts), dtype=torch.int64, device=scores.device)
    tallies = torch.empty(parts, 256, dtype=torch.int32, device=scores.device)
    above, equal = torch.empty(2, parts, dtype=torch.int32, device=scores.device)
    of_part = (scores, segments, begins, ends, keys)
    how = {"BITS": bits, "BLOCK": _BLOCK, "num_warps": _WARPS}
    with on(scores):
        for shift in range(bits - 8, -1, -8):
            count_bytes_kernel[(parts,)](*of_part, tallies, steps, shift, **how)
            narrow_kernel[(len(counts),)](tallies, firsts, keys, lefts, shift, ROWS=_ROWS, num_warps=_WARPS)
        tally_kernel[(parts,)](*of_part, above, equal, steps, **how)
        offsets_kernel[(len(counts),)](firsts, above, equal, BLOCK=_BLOCK, num_warps=_WARPS)
        take_kernel[(parts,)](*of_part, lefts, above, equal, starts, places, steps, **how)
    return places
