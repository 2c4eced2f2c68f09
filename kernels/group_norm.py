"""Group norm of images that stand innermost, the sum with a residual and the ReLU after it in the same kernel.

x is [C, P, B]: P = H W pixels of B images. Statistics are of one image and one of G groups of neighbouring channels,
[G B], an image's groups B apart; they run in float32, as `moments` takes them.

    group_moments(x, groups)       mean, biased variance [G B]
    group_norm(x, mean, variance)  y = (x - mean) / sqrt(variance + eps) * weight + bias (+ residual), or max(y, 0)
                                   with a bit for each element, whole bytes for each pixel of a channel

A tile is some pixels of some images, so that no division finds an element's image. Nothing is atomic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import split
from .launch import SIZES, check_size, on
from .moments import aligned, join

_TILE = 1024
_WARPS = 4


@triton.jit(do_not_specialize=SIZES)
def group_moments_kernel(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    rows: tl.int32,
    images: tl.int32,
    steps: tl.int32,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One program: of some images and a group `steps` tiles of its rows, channels and pixels; [parts, groups, B]."""
    images = aligned(images, ALIGNED)
    group = tl.program_id(1)
    first = tl.program_id(2) * steps * PIXELS
    x += group.to(tl.int64) * rows * images
    b = tl.program_id(0) * LANES + tl.arange(0, LANES)
    total = tl.zeros((PIXELS, LANES), tl.float32)
    for step in range(steps):
        row = first + step * PIXELS + tl.arange(0, PIXELS)
        live = (row < rows)[:, None] & (b < images)[None, :]
        total += tl.load(x + row[:, None] * images + b[None, :], mask=live, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / tl.minimum(rows - first, steps * PIXELS).to(tl.float32)
    total = tl.zeros((PIXELS, LANES), tl.float32)
    for step in range(steps):
        row = first + step * PIXELS + tl.arange(0, PIXELS)
        live = (row < rows)[:, None] & (b < images)[None, :]
        off = tl.load(x + row[:, None] * images + b[None, :], mask=live, other=0.0).to(tl.float32) - mean[None, :]
        total += tl.where(live, off * off, 0.0)
    to = (tl.program_id(2) * tl.num_programs(1) + group) * images + b
    tl.store(means + to, mean, mask=b < images)
    tl.store(squares + to, tl.sum(total, axis=0), mask=b < images)


@triton.jit(do_not_specialize=SIZES)
def group_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    bits: tl.tensor,
    pixels: tl.int32,
    images: tl.int32,
    width: tl.int32,
    eps: tl.float32,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One program: a tile of a channel; width: channels of a group; bits uint8 [C, P, ceil(B / 8)]."""
    images = aligned(images, ALIGNED)
    channel = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    b = tl.program_id(2) * LANES + tl.arange(0, LANES)
    live = (pixel < pixels)[:, None] & (b < images)[None, :]
    at = channel.to(tl.int64) * pixels * images + pixel[:, None] * images + b[None, :]
    of = channel // width * images + b
    middle = tl.load(mean + of, mask=b < images, other=0.0)
    spread = tl.load(variance + of, mask=b < images, other=1.0)
    scale = tl.load(weight + channel).to(tl.float32) / tl.sqrt(spread + eps)
    off = tl.load(x + at, mask=live, other=0.0).to(tl.float32) - middle[None, :]
    out = off * scale[None, :] + tl.load(bias + channel).to(tl.float32)
    if RESIDUAL:
        out += tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    if RELU:
        out = out.to(y.dtype.element_ty).to(tl.float32)
        below = out <= 0
        out = tl.where(below, 0.0, out)
        ones = tl.reshape(tl.where(below, 0, 1), (PIXELS, LANES // 8, 8)) << tl.arange(0, 8)[None, None, :]
        pitch = (images + 7) // 8
        byte = tl.program_id(2) * (LANES // 8) + tl.arange(0, LANES // 8)
        to = channel.to(tl.int64) * pixels * pitch + pixel[:, None] * pitch + byte[None, :]
        inside = (pixel < pixels)[:, None] & (byte < pitch)[None, :]
        tl.store(bits + to, tl.sum(ones, axis=2).to(tl.uint8), mask=inside)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=live)


def tile_of(images: int) -> dict[str, int | bool]:
    """How the kernels of so many images are compiled and launched."""
    lanes = min(64, max(8, triton.next_power_of_2(images)))
    return {"ALIGNED": images % 16 == 0, "LANES": lanes, "PIXELS": _TILE // lanes, "num_warps": _WARPS}


def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) float32 [groups B] of x [C, P, B]; groups divides C."""
    channels, pixels, images = x.shape
    check_size("group_moments", x.numel())
    rows, tile = channels // groups * pixels, tile_of(images)
    of_images = triton.cdiv(images, tile["LANES"])
    parts, steps = split(triton.cdiv(rows, tile["PIXELS"]), groups * of_images)
    means, squares = (x.new_empty(parts, groups * images, dtype=torch.float32) for _ in range(2))
    with on(x):
        group_moments_kernel[(of_images, groups, parts)](x, means, squares, rows, images, steps, **tile)
        return join(means, squares, rows, steps * tile["PIXELS"])


def group_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(y [C, P, B] in x's dtype, bits uint8 [C, P, ceil(B / 8)] of the ReLU or None).

    mean, variance float32 [groups B]; weight and bias [C] of any floating dtype; residual [C, P, B].
    """
    channels, pixels, images = x.shape
    check_size("group_norm", pixels * images)
    y, tile = torch.empty_like(x), tile_of(images)
    bits = x.new_empty(channels, pixels, (images + 7) // 8, dtype=torch.uint8) if relu else None
    grid = (triton.cdiv(pixels, tile["PIXELS"]), channels, triton.cdiv(images, tile["LANES"]))
    with on(x):
        group_norm_kernel[grid](
            x,
            x if residual is None else residual,
            mean,
            variance,
            weight,
            bias,
            y,
            x if bits is None else bits,
            pixels,
            images,
            channels // groups,
            eps,
            RESIDUAL=residual is not None,
            RELU=relu,
            **tile,
        )
    return y, bits
