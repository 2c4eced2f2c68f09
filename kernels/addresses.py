"""What the kernels of convolutions share: a geometry, where entries and outputs stand, how work is split.

Images stand innermost, in blocks of L: x [C, H, W, G, L], y [N, H', W', G, L]. An entry is a column (c, ky, kx).
"""

import torch
import triton
import triton.language as tl

Sizes = tuple[int, int]
Geometry = tuple[Sizes, ...]
"""(kernel, stride, padding, dilation), each vertical and horizontal."""


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


@triton.jit
def outputs_of(
    m: tl.tensor, blocks: tl.tensor, out_wide: tl.tensor, LANES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(lane, block, right, down) of the places m in [out_high, out_wide, blocks, L]."""
    pixel = m // LANES // blocks
    return m % LANES, m // LANES % blocks, pixel % out_wide, pixel // out_wide


@triton.jit
def origins_of(
    m: tl.tensor,
    blocks: tl.tensor,
    wide: tl.tensor,
    out_high: tl.tensor,
    out_wide: tl.tensor,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    LANES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of the outputs m whether they exist; of their first tap row and column, and where it stands in a channel."""
    lane, block, right, down = outputs_of(m, blocks, out_wide, LANES)
    top = down * STRIDE_Y - PADDING_Y
    left = right * STRIDE_X - PADDING_X
    return down < out_high, top, left, ((top * wide + left) * blocks + block) * LANES + lane


@triton.jit
def shifts_of(
    cols: tl.tensor,
    e: tl.tensor,
    live: tl.tensor,
    blocks: tl.tensor,
    high: tl.tensor,
    wide: tl.tensor,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    LANES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of the entries e how far they are from a first tap: down, right, and in memory from that of channel 0."""
    channel, below, beside = taps_of(cols, e, live, KERNEL_Y, KERNEL_X, DILATION_Y, DILATION_X)
    return below, beside, ((channel * high + below) * wide + beside) * blocks * LANES


@triton.jit
def unpadded(
    y: tl.tensor, x: tl.tensor, high: tl.tensor, wide: tl.tensor, PADDING_Y: tl.constexpr, PADDING_X: tl.constexpr
) -> tl.tensor:
    """Whether row y and column x are within the image, for taps of outputs that exist: without padding all are."""
    inside = tl.full(y.shape, 1, tl.int1)
    if PADDING_Y > 0:
        inside &= within(y, high)
    if PADDING_X > 0:
        inside &= within(x, wide)
    return inside


@triton.jit
def within(y: tl.tensor, size: tl.tensor) -> tl.tensor:
    """0 <= y < size, by one comparison."""
    return y.to(tl.uint32, bitcast=True) < size.to(tl.uint32)


@triton.jit
def list_of(starts: tl.tensor, j: tl.tensor, live: tl.tensor, lists: tl.tensor, STEPS: tl.constexpr) -> tl.tensor:
    """The list of each entry j, the last one that starts at or before it: STEPS halvings, 2 ** STEPS >= lists."""
    low = (j * 0).to(tl.int32)
    high = low + lists
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(starts + middle, mask=live, other=0) <= j
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


def search_steps(lists: int) -> int:
    """How many halvings leave one of so many lists."""
    return max(lists - 1, 0).bit_length()


_PROGRAMS = 1024  # about eight for each multiprocessor of an H200


def split(tiles: int, programs: int) -> tuple[int, int]:
    """(splits, tiles of each) that bring `programs` programs near to what fills a GPU; at least 4 tiles to a split."""
    wanted = max(1, min(_PROGRAMS // max(programs, 1), triton.cdiv(tiles, 4)))
    steps = max(1, triton.cdiv(tiles, wanted))
    return max(1, triton.cdiv(tiles, steps)), steps


def precision(dtype: torch.dtype, tf32: bool) -> str:
    """How tl.dot takes float32 operands."""
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What sums run in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def constants(geometry: Geometry) -> tuple[int, ...]:
    """The eight numbers of a geometry, as the kernels take them."""
    return tuple(number for pair in geometry for number in pair)
