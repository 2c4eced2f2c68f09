"""Sums of clients' reports that have different masks (`fedsparse.ops.sparse_mean`), as integers.

    add_reports(bits, values, scales, weights)   of each place that any of the K clients has: sum_k rint(x_k scale_k),
                                                 sum_k weight_k, over the clients that have it

Each program has one block of places and goes through all clients: a client's value stands at the number of bits set
before its place, counted from the block's first value. The product is rounded to float64 before it is rounded to an
integer, as on the CPU, so that these kernels are compiled without fused multiply-add. Integers add in any order to the
same bits; nothing is atomic. The host waits once, for the number of places.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import flags_at, places_before
from .launch import SIZES, check_size, on
from .pack import count_bits_kernel

_BLOCK = 512
_WARPS = 4


@triton.jit
def to_integer(x: tl.tensor) -> tl.tensor:
    """The nearest int64 of float64 x below 2^63 in magnitude, ties to even: from 2^52 on all numbers are integers."""
    whole: tl.constexpr = 4503599627370496.0
    size = tl.abs(x)
    rounded = tl.where(size < whole, (size + whole) - whole, size).to(tl.int64)
    return tl.where(x < 0, -rounded, rounded)


@triton.jit(do_not_specialize=SIZES)
def count_union_kernel(
    bits: tl.tensor, counts: tl.tensor, run: tl.int32, clients: tl.int32, BLOCK: tl.constexpr
) -> None:
    """One program: of a block the places that any client has."""
    begin = tl.program_id(0) * BLOCK
    union = tl.zeros((BLOCK // 8, 8), tl.int32)
    for _ in range(clients):
        union |= flags_at(bits, begin, run, BLOCK)
        bits += run // 8
    tl.store(counts + tl.program_id(0), tl.sum(tl.sum(union, axis=1), axis=0))


@triton.jit(do_not_specialize=SIZES)
def add_reports_kernel(
    bits: tl.tensor,
    values: tl.tensor,
    firsts: tl.tensor,
    scales: tl.tensor,
    weights: tl.tensor,
    starts: tl.tensor,
    places: tl.tensor,
    sums: tl.tensor,
    totals: tl.tensor,
    run: tl.int32,
    clients: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    """One program: a block; firsts int64 [K, blocks]: where its values begin, starts [blocks]: where its results do."""
    block = tl.program_id(0)
    begin = block * BLOCK
    union = tl.zeros((BLOCK // 8, 8), tl.int32)
    added = tl.zeros((BLOCK // 8, 8), tl.int64)
    weighed = tl.zeros((BLOCK // 8, 8), tl.int64)
    for client in range(clients):
        flags = flags_at(bits, begin, run, BLOCK)
        bits += run // 8
        own = values + tl.load(firsts + client * tl.num_programs(0) + block)
        entry = tl.load(own + places_before(flags), mask=flags > 0, other=0.0).to(tl.float64)
        added += tl.where(flags > 0, to_integer(entry * tl.load(scales + client)), 0)
        weighed += tl.where(flags > 0, tl.load(weights + client), 0)
        union |= flags
    to = tl.load(starts + block) + places_before(union)
    at = begin + tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(places + to, at.to(tl.int64), mask=union > 0)
    tl.store(sums + to, added, mask=union > 0)
    tl.store(totals + to, weighed, mask=union > 0)


def add_reports(bits: Tensor, values: Tensor, scales: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(places, sums, sums of weights), int64 [u], the places sorted.

    bits uint8 [K, n / 8] as `pack` makes them; values float32 [...], of the first client, then the next; scales float64
    and weights int64 [K]. ValueError where there are not as many values as bits set.
    """
    clients, run = bits.shape[0], 8 * bits.shape[1]
    check_size("sparse_mean", run)
    blocks = triton.cdiv(run, _BLOCK)
    how = {"BLOCK": _BLOCK, "num_warps": _WARPS}
    counts = torch.empty(clients, blocks, dtype=torch.int32, device=bits.device)
    of_union = torch.zeros(blocks, dtype=torch.int32, device=bits.device)
    with on(bits):
        if counts.numel():
            count_bits_kernel[(clients * blocks,)](bits, counts, run, blocks, 1, **how)
            count_union_kernel[(blocks,)](bits, of_union, run, clients, **how)
        ends, stops = counts.flatten().cumsum(0), of_union.cumsum(0)
        held, size = torch.stack([counts.sum(), of_union.sum()]).tolist()
        if held != len(values):
            raise ValueError(f"sparse_mean: {held} bits are set, but there are {len(values)} values.")
        places, sums, totals = torch.empty(3, size, dtype=torch.int64, device=bits.device)
        if size:
            add_reports_kernel[(blocks,)](
                *(bits, values, ends - counts.flatten(), scales, weights, stops - of_union, places, sums, totals),
                *(run, clients),
                **how,
                enable_fp_fusion=False,
            )
    return places, sums, totals
