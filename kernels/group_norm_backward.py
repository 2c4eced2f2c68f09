"""Gradients of group norm of images that stand innermost, with the residual and the ReLU that `group_norm` fuses.

With m = gy where ReLU let it pass, z = (x - mean) rstd, and means over an image's group

    dx = rstd (m weight - mean(m weight) - z mean(m weight z)),  dweight = sum m z,  dbias = sum m,  dresidual = m

(Wu and He, ECCV 2018.) One kernel sums m and m (x - mean) over the pixels of each channel and image, [C, B], from which
small sums give the rest. Sums run in float32, in one order: bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addresses import split
from .group_norm import tile_of
from .launch import SIZES, on
from .moments import aligned


@triton.jit
def passed(
    g: tl.tensor, bits: tl.tensor, row: tl.tensor, b: tl.tensor, images: tl.tensor, live: tl.tensor
) -> tl.tensor:
    """g [rows, images] where the bit is set, else 0; each row has whole bytes, lowest bit first."""
    byte = tl.load(bits + row[:, None] * ((images + 7) // 8) + (b // 8)[None, :], mask=live, other=0).to(tl.int32)
    return tl.where((byte >> (b % 8)[None, :]) & 1 != 0, g, 0.0)


@triton.jit(do_not_specialize=SIZES)
def group_sums_kernel(
    gy: tl.tensor,
    bits: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    pixels: tl.int32,
    images: tl.int32,
    width: tl.int32,
    steps: tl.int32,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One program: sums of m and of m (x - mean) over `steps` tiles of a channel; float32 [parts, C, B]."""
    images = aligned(images, ALIGNED)
    channel = tl.program_id(1)
    first = tl.program_id(2) * steps * PIXELS
    b = tl.program_id(0) * LANES + tl.arange(0, LANES)
    base = channel.to(tl.int64) * pixels
    bits += base * ((images + 7) // 8)
    middle = tl.load(mean + channel // width * images + b, mask=b < images, other=0.0)
    total = tl.zeros((PIXELS, LANES), tl.float32)
    product = tl.zeros((PIXELS, LANES), tl.float32)
    for step in range(steps):
        pixel = first + step * PIXELS + tl.arange(0, PIXELS)
        live = (pixel < pixels)[:, None] & (b < images)[None, :]
        at = base * images + pixel[:, None] * images + b[None, :]
        g = tl.load(gy + at, mask=live, other=0.0).to(tl.float32)
        if RELU:
            g = passed(g, bits, pixel, b, images, live)
        total += g
        product += g * (tl.load(x + at, mask=live, other=0.0).to(tl.float32) - middle[None, :])
    to = (tl.program_id(2) * tl.num_programs(1) + channel) * images + b
    tl.store(sums + to, tl.sum(total, axis=0), mask=b < images)
    tl.store(products + to, tl.sum(product, axis=0), mask=b < images)


@triton.jit(do_not_specialize=SIZES)
def group_gradient_kernel(
    gy: tl.tensor,
    bits: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    dx: tl.tensor,
    dresidual: tl.tensor,
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
    """One program: a tile of a channel; sums, products: of m weight and m weight (x - mean), float32 [groups, B]."""
    images = aligned(images, ALIGNED)
    channel = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    b = tl.program_id(2) * LANES + tl.arange(0, LANES)
    live = (pixel < pixels)[:, None] & (b < images)[None, :]
    base = channel.to(tl.int64) * pixels
    at = base * images + pixel[:, None] * images + b[None, :]
    of = channel // width * images + b
    rstd = 1.0 / tl.sqrt(tl.load(variance + of, mask=b < images, other=1.0) + eps)
    middle = tl.load(mean + of, mask=b < images, other=0.0)
    count = (width * pixels).to(tl.float32)
    level = tl.load(sums + of, mask=b < images, other=0.0) / count
    slope = rstd * rstd * tl.load(products + of, mask=b < images, other=0.0) / count
    out = tl.load(gy + at, mask=live, other=0.0).to(tl.float32)
    if RELU:
        out = passed(out, bits + base * ((images + 7) // 8), pixel, b, images, live)
    if RESIDUAL:
        tl.store(dresidual + at, out.to(dresidual.dtype.element_ty), mask=live)
    off = tl.load(x + at, mask=live, other=0.0).to(tl.float32) - middle[None, :]
    out = out * tl.load(weight + channel).to(tl.float32) - level[None, :] - off * slope[None, :]
    tl.store(dx + at, (out * rstd[None, :]).to(dx.dtype.element_ty), mask=live)


def group_norm_backward(
    gy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    groups: int,
    eps: float,
    bits: Tensor | None = None,
    residual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dx in gy's dtype, dweight, dbias float32, the residual's gradient in gy's dtype where wanted).

    x may have been rounded to another dtype than gy's.
    Shapes as in `group_norm`; bits: those that it gave with a ReLU.
    """
    channels, pixels, images = x.shape
    tile, width, relu = tile_of(images), channels // groups, bits is not None
    of_images = triton.cdiv(images, tile["LANES"])
    parts, steps = split(triton.cdiv(pixels, tile["PIXELS"]), channels * of_images)
    sums, products = (x.new_empty(parts, channels, images, dtype=torch.float32) for _ in range(2))
    dx = torch.empty_like(gy)
    of_residual = (torch.empty_like(gy) if relu else gy) if residual else None
    kept = gy if bits is None else bits
    with on(x):
        group_sums_kernel[(of_images, channels, parts)](
            gy, kept, x, mean, sums, products, pixels, images, width, steps, RELU=relu, **tile
        )
        each, moments = sums.sum(0), products.sum(0)
        of_group = [(weight.float()[:, None] * s).view(groups, width, images).sum(1) for s in (each, moments)]
        group_gradient_kernel[(triton.cdiv(pixels, tile["PIXELS"]), channels, of_images)](
            gy,
            kept,
            x,
            mean,
            variance,
            weight,
            *of_group,
            dx,
            dx if of_residual is None else of_residual,
            pixels,
            images,
            width,
            eps,
            RESIDUAL=residual and relu,
            RELU=relu,
            **tile,
        )
    rstd = torch.rsqrt(variance + eps).view(groups, 1, images)
    dweight = (moments.view(groups, width, images) * rstd).sum(2).flatten()
    return dx, dweight, each.sum(1), of_residual
