"""Convolutions whose mask has strips: V consecutive output channels share their columns (V = 16, 32, 64).

    strip_product(packed, x)   y [N, H', W', G, L] = W * x [C, H, W, G, L] (+ bias)    tensor cores
    strip_spread(packed, gy)   of each entry, its V weights times the V rows of gy     tensor cores
    strip_sample(gy, x)        the gradient to the weights, packed                     tensor cores
    pack_strips, unpack_strips values [nnz] to and from packed [entries, V]

A strip is a dense matrix [entries, V] times gathered rows of x: entry e of a strip is one column (c, ky, kx), and its
row of x is the channel c shifted by (ky, kx). Images stand innermost, in G blocks of L ([C, H, W, G, L]), so that every
row is made of aligned runs of G L numbers, whatever the tap and the stride; a linear layer is the case H = W = 1. An
activation once loaded feeds V multiply-adds. The gradient to the input is `strip_spread`, whose result has a channel
for each entry, and then `direct.gather_entries`, which adds up the entries of each input channel: V times less to move
than a gather for every weight.

Every tensor has a leading dimension of clients, who share the mask. Each output element is summed by one program in a
fixed order (weight gradients: in `splits` parts, added in order), and nothing is atomic: results are bitwise
reproducible.
Operands are float16, bfloat16 or float32, sums float32; with `tf32` float32 operands are rounded to TF32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import SIZES, check_size, interpreting, on

VECTORS = (16, 32, 64)
Sizes = tuple[int, int]
Geometry = tuple[Sizes, ...]
"""(kernel, stride, padding, dilation), each vertical and horizontal."""


@dataclass(frozen=True)
class Tile:
    """What one program does at a time: `outputs` pixels of images x `entries`, held by `warps`, `stages` in flight."""

    outputs: int
    entries: int
    warps: int
    stages: int


def product_tile(vector: int, dtype: torch.dtype) -> Tile:
    """The tile of `strip_product`."""
    if dtype == torch.float32:
        return Tile(128, 16, 4, 3)
    return Tile(128, 32, 4, 4) if vector < 64 else Tile(128, 32, 8, 4)


def sample_tile(vector: int, dtype: torch.dtype, entries_per_strip: float) -> Tile:
    """The tile of `strip_sample`: few entries to a strip take a short tile."""
    entries = 64 if entries_per_strip > 32 else 32 if entries_per_strip > 16 else 16
    return Tile(32 if dtype == torch.float32 else 64, entries, 4, 3)


def spread_tile(vector: int, dtype: torch.dtype, entries_per_strip: float) -> Tile:
    """The tile of `strip_spread`."""
    entries = 64 if entries_per_strip > 32 else 32 if entries_per_strip > 16 else 16
    if dtype == torch.float32:
        return Tile(128, min(entries, 32), 8 if vector == 64 else 4, 2)
    return Tile(128, entries, 4, 2)


@triton.jit
def taps_of(
    cols: tl.tensor,
    e: tl.tensor,
    live: tl.tensor,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Channel and shift (down, right) of the entries e."""
    col = tl.load(cols + e, mask=live, other=0)
    channel = col // (KERNEL_Y * KERNEL_X)
    tap = col % (KERNEL_Y * KERNEL_X)
    return channel, tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X


@triton.jit(do_not_specialize=SIZES)
def strip_product_kernel(
    packed: tl.tensor,
    starts: tl.tensor,
    cols: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    entries: tl.int32,
    strips: tl.int32,
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
    HAS_BIAS: tl.constexpr,
) -> None:
    """One program: OUTPUTS outputs of one client x the V rows of one strip; neighbours share the outputs."""
    strip = tl.program_id(0) % strips
    tile = tl.program_id(0) // strips
    client = tl.program_id(1)
    m = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    lane = m % LANES
    block = m // LANES % blocks
    pixel = m // LANES // blocks
    right = pixel % out_wide
    down = pixel // out_wide
    inside = down < out_high
    top = down * STRIDE_Y - PADDING_Y
    left = right * STRIDE_X - PADDING_X
    x_client = x + client.to(tl.int64) * blocks * channels * high * wide * LANES
    x_at = ((top * wide + left) * blocks + block) * LANES + lane
    begin = tl.load(starts + strip)
    end = tl.load(starts + strip + 1)
    v = tl.arange(0, V)
    w_client = packed + client.to(tl.int64) * entries * V
    acc = tl.zeros((OUTPUTS, V), tl.float32)
    for first in tl.range(begin, end, ENTRIES, num_stages=STAGES):
        e = first + tl.arange(0, ENTRIES)
        live = e < end
        channel, below, beside = taps_of(cols, e, live, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X)
        e_at = ((channel * high + below) * wide + beside) * blocks * LANES
        take = inside[:, None] & live[None, :]
        if PADDING_Y > 0:
            take &= (top[:, None] + below[None, :]).to(tl.uint32, bitcast=True) < high.to(tl.uint32)
        if PADDING_X > 0:
            take &= (left[:, None] + beside[None, :]).to(tl.uint32, bitcast=True) < wide.to(tl.uint32)
        rows = tl.load(x_client + (x_at[:, None] + e_at[None, :]), mask=take, other=0.0)
        w = tl.load(w_client + (e[:, None] * V + v[None, :]), mask=live[:, None], other=0.0)
        if UPCAST:
            rows = rows.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(rows, w, acc, input_precision=PRECISION)
    n = strip * V + v
    if HAS_BIAS:
        acc += tl.load(bias + client * strips * V + n).to(tl.float32)[None, :]
    row = out_high * out_wide * blocks * LANES
    y_client = y + client.to(tl.int64) * strips * V * row
    tl.store(y_client + (m[:, None] + (n * row)[None, :]), acc.to(y.dtype.element_ty), mask=inside[:, None])


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
        channel, below, beside = taps_of(cols, e, live, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X)
        e_at = ((channel * high + below) * wide + beside) * blocks * LANES
        acc = tl.zeros((ENTRIES, V), tl.float32)
        for step in tl.range(0, steps, num_stages=STAGES):
            m = (split * steps + step) * OUTPUTS + tl.arange(0, OUTPUTS)
            lane = m % LANES
            block = m // LANES % blocks
            pixel = m // LANES // blocks
            right = pixel % out_wide
            down = pixel // out_wide
            inside = down < out_high
            top = down * STRIDE_Y - PADDING_Y
            left = right * STRIDE_X - PADDING_X
            x_at = ((top * wide + left) * blocks + block) * LANES + lane
            take = live[:, None] & inside[None, :]
            if PADDING_Y > 0:
                take &= (top[None, :] + below[:, None]).to(tl.uint32, bitcast=True) < high.to(tl.uint32)
            if PADDING_X > 0:
                take &= (left[None, :] + beside[:, None]).to(tl.uint32, bitcast=True) < wide.to(tl.uint32)
            rows = tl.load(x_client + (e_at[:, None] + x_at[None, :]), mask=take, other=0.0)
            g_at = m[:, None] + ((strip * V + v) * row)[None, :]
            g = tl.load(g_client + g_at, mask=inside[:, None], other=0.0)
            if UPCAST:
                rows = rows.to(tl.float32)
                g = g.to(tl.float32)
            acc = tl.dot(rows, g, acc, input_precision=PRECISION)
        tl.store(out + (e[:, None] * V + v[None, :]), acc, mask=live[:, None])


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


@triton.jit
def values_at(
    starts: tl.tensor, e: tl.tensor, live: tl.tensor, strips: tl.int32, STEPS: tl.constexpr, V: tl.constexpr
) -> tl.tensor:
    """Positions [entries, V] of the entries e in the values, which stand row by row: STEPS halvings find the strip."""
    low = e * 0
    high = low + strips
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(starts + middle, mask=live, other=0) <= e
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
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


_MOVED = 32  # entries that a program of pack_strips and unpack_strips moves


def search_steps(strips: int) -> int:
    """How many halvings leave one of `strips` strips."""
    return max(strips - 1, 0).bit_length()


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


def strip_product(
    packed: Tensor,
    starts: Tensor,
    cols: Tensor,
    x: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: Sizes,
    tf32: bool,
) -> Tensor:
    """y [clients, N, *size, G, L] from x [clients, C, H, W, G, L] and packed [clients, entries, V].

    starts int32 [strips + 1], cols int32 [entries], (c * kh + ky) * kw + kx, in the order of packed; bias
    [clients, N] or None; N = strips * V. One floating dtype; bias may have any.
    """
    clients, entries, vector = packed.shape
    strips = starts.numel() - 1
    _, channels, high, wide, blocks, lanes = x.shape
    y = x.new_empty(clients, strips * vector, *size, blocks, lanes)
    check_size("strip_product", x.numel() // clients, y.numel() // clients)
    if y.numel() == 0:
        return y
    shape = product_tile(vector, x.dtype)
    tiles = triton.cdiv(y.numel() // (clients * strips * vector), shape.outputs)
    with on(x):
        strip_product_kernel[(strips * tiles, clients)](
            packed,
            starts,
            cols,
            x.contiguous(),
            packed if bias is None else bias.contiguous(),
            y,
            entries,
            strips,
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
            HAS_BIAS=bias is not None,
            num_warps=shape.warps,
        )
    return y


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


def strip_spread(packed: Tensor, starts: Tensor, gy: Tensor, all_blocks: int, tf32: bool) -> Tensor:
    """u [entries, H', W', G, L] with u[e] = sum_v packed[e, v] gy[strip(e) V + v], in gy's dtype.

    packed [entries, V] of one client; gy [N, H', W', G, L] is contiguous, or G blocks of a contiguous tensor of
    `all_blocks`.
    """
    entries, vector = packed.shape
    _, high, wide, blocks, lanes = gy.shape
    strips = starts.numel() - 1
    spread = gy.new_empty(entries, high, wide, blocks, lanes)
    check_size("strip_spread", gy.numel(), spread.numel())
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


_PROGRAMS = 1024  # about eight for each multiprocessor of an H200


def split(tiles: int, programs: int) -> tuple[int, int]:
    """(splits, tiles of each) that bring `programs` programs near to what fills a GPU; at least 4 tiles to a split."""
    wanted = max(1, min(_PROGRAMS // max(programs, 1), triton.cdiv(tiles, 4)))
    steps = max(1, triton.cdiv(tiles, wanted))
    return max(1, triton.cdiv(tiles, steps)), steps


def precision(dtype: torch.dtype, tf32: bool) -> str:
    """How tl.dot takes float32 operands."""
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"


def constants(geometry: Geometry) -> tuple[int, ...]:
    """The eight numbers of a geometry, as the kernels take them."""
    return tuple(number for pair in geometry for number in pair)
