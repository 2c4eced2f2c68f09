"""The Triton back end: convolutions of any mask, and products of masks with strips on tensor cores.

Masks whose granularity is 16, 32 or 64 run on `kernels.strip_product` and its like, all others and float64 on
`kernels.direct`; linear layers without strips on `kernels.spmm` (see `spmm`). The gradient to the input of half types
rounds the sum of each V products to that type before it adds those sums in float32.
The kernels read channels, pixels, then images, in blocks of 16; ordinary tensors are brought into that layout.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fedsparse.ops.algebra import Geometry, Products, output_size
from fedsparse.ops.index import Index, single_columns, single_rows

LANES = 16
VECTORS = (16, 32, 64)
SCRATCH = 32 * 2**20
"""Bytes that the gradient to the input may hold at a time, about what stays in a GPU's cache."""
_plans: Any = WeakIdKeyDictionary()


class Plan(NamedTuple):
    """The entries of a mask's strips, int32; an entry is one column (c, ky, kx) of one strip.

    starts [N / V + 1], cols [entries]: of each strip. t_starts [C + 1], t_taps [entries]: of each input channel, as
    (entry * kh + ky) * kw + kx.
    """

    starts: Tensor
    cols: Tensor
    t_starts: Tensor
    t_taps: Tensor


def plan(index: Index, vector: int, taps: int) -> Plan:
    """The plan of a mask of granularity V with so many taps (kh * kw), made once for a mask; waits for no GPU."""
    plans = _plans.setdefault(index.cols, {})
    if (vector, taps) not in plans:
        plans[vector, taps] = _plan(index, vector, taps)
    return plans[vector, taps]


def _plan(index: Index, vector: int, taps: int) -> Plan:
    if index.granularity != vector:
        raise ValueError(f"a mask of granularity {index.granularity} has no strips of {vector} rows")
    cols = index.cols.to(torch.int32, copy=True)  # a plan that held the index's own would never go
    channel, entry = torch.sort(cols // taps, stable=True)
    t_taps = (entry * taps + cols[entry] % taps).to(torch.int32)
    t_starts = torch.searchsorted(channel, torch.arange(index.channels + 1, device=cols.device, dtype=torch.int32))
    return Plan(index.indptr, cols, t_starts.to(torch.int32), t_taps)


def to_lanes(x: Tensor) -> Tensor:
    """x [clients, B, C, H, W] -> [clients, C, H, W, ceil(B / 16), 16], zeros in the lanes without an image.

    No copy of a tensor whose images stand innermost already, if they are a multiple of 16.
    """
    blocks = -(-x.shape[1] // LANES)
    padded = x if blocks * LANES == x.shape[1] else F.pad(x, (0,) * 7 + (blocks * LANES - x.shape[1],))
    return padded.permute(0, 2, 3, 4, 1).contiguous().unflatten(4, (blocks, LANES))


def from_lanes(x: Tensor, batch: int) -> Tensor:
    """The way back, for the first `batch` images of each client: a view, whose images stand innermost."""
    return x.flatten(4)[..., :batch].permute(0, 4, 1, 2, 3)


def on_tensor_cores(vector: int, dtype: torch.dtype) -> bool:
    """Whether a mask of that granularity runs on the kernels of strips."""
    return vector in VECTORS and dtype in (torch.float16, torch.bfloat16, torch.float32)


def lanes_product(
    vector: int, values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry, tf32: bool
) -> Tensor:
    """y [clients, N, H', W', G, 16] of x [clients, C, H, W, G, 16], values [clients, nnz] and bias [clients, N]."""
    from fedsparse.kernels import direct, strip_pack
    from fedsparse.kernels.strip_product import strip_product

    size = output_size((x.shape[2], x.shape[3]), geometry)
    if not on_tensor_cores(vector, x.dtype):
        return direct.direct_product(values, *single_rows(index), x, bias, geometry[:4], size)
    of = plan(index, vector, math.prod(geometry[0]))
    packed = strip_pack.pack_strips(values, of.starts, vector, x.dtype)
    return strip_product(packed, of.starts, of.cols, x, bias, geometry[:4], size, tf32)


def lanes_transposed(vector: int, values: Tensor, index: Index, gy: Tensor, geometry: Geometry, tf32: bool) -> Tensor:
    """dx [clients, C, H, W, G, 16] of gy [clients, N, H', W', G, 16] and values [clients, nnz]."""
    from fedsparse.kernels import direct, strip_pack
    from fedsparse.kernels.strip_spread import strip_spread

    if not on_tensor_cores(vector, gy.dtype):
        lists = single_columns(index, math.prod(geometry[0]))
        return direct.direct_transposed(values, *lists, gy, geometry[:4], geometry[4])
    of = plan(index, vector, math.prod(geometry[0]))
    packed = strip_pack.pack_strips(values, of.starts, vector, gy.dtype)
    dx = gy.new_empty(gy.shape[0], index.channels, *geometry[4], *gy.shape[4:])
    of_one_block = packed.shape[1] * math.prod(gy.shape[2:4]) * LANES * gy.element_size()
    step = max(1, SCRATCH // max(1, of_one_block))
    for weights, g, target in zip(packed, gy.contiguous(), dx, strict=True):
        for some, part in zip(g.split(step, 3), target.split(step, 3), strict=True):
            spread = strip_spread(weights, of.starts, some, gy.shape[4], tf32)
            direct.gather_entries(spread, of.t_starts, of.t_taps, geometry[:4], part, gy.shape[4])
    return dx


def lanes_sampled(vector: int, index: Index, gy: Tensor, x: Tensor, geometry: Geometry, tf32: bool) -> Tensor:
    """dvalues [clients, nnz] of gy [clients, N, H', W', G, 16] and x [clients, C, H, W, G, 16].

    Zeros stand in the lanes without an image.
    """
    from fedsparse.kernels import strip_pack
    from fedsparse.kernels.direct_sample import direct_sample
    from fedsparse.kernels.strip_sample import strip_sample

    if not on_tensor_cores(vector, x.dtype):
        return direct_sample(gy, x, *single_rows(index), geometry[:4])
    of = plan(index, vector, math.prod(geometry[0]))
    parts = strip_sample(gy, x, of.starts, of.cols, vector, geometry[:4], tf32)
    return strip_pack.unpack_strips(parts, of.starts, x.dtype)


def allows_tf32(linear: bool) -> bool:
    """Whether float32 products of linear layers, or of convolutions, may round their operands to TF32, as torch's."""
    return torch.backends.cuda.matmul.allow_tf32 if linear else torch.backends.cudnn.allow_tf32


@cache
def convolutions(vector: int, clients: bool, linear: bool = False) -> Products:
    """The three products on ordinary tensors for a mask of granularity V; with `clients` that dimension is the first.

    What they return has its images innermost, as they take it without a copy.
    """

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return lanes_product(vector, values, index, x, bias, geometry, allows_tf32(linear))

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        return lanes_transposed(vector, values, index, gy, geometry, allows_tf32(linear))

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return lanes_sampled(vector, index, gy, x, geometry, allows_tf32(linear))

    return on_lanes(Products(product, transposed, sampled), clients)


def on_lanes(lanes: Products, clients: bool) -> Products:
    """Products of ordinary tensors, with a first dimension of clients or without, made of those of lanes."""

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return from_lanes(lanes.product(values, index, to_lanes(x), bias, geometry), x.shape[1])

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        return from_lanes(lanes.transposed(values, index, to_lanes(gy), geometry), gy.shape[1])

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return lanes.sampled(index, to_lanes(gy), to_lanes(x), geometry)

    several = Products(product, transposed, sampled)
    return several if clients else _of_one_client(several)


def _of_one_client(several: Products) -> Products:
    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return several.product(values[None], index, x[None], None if bias is None else bias[None], geometry)[0]

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        return several.transposed(values[None], index, gy[None], geometry)[0]

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return several.sampled(index, gy[None], x[None], geometry)[0]

    return Products(product, transposed, sampled)


_POINT: Geometry = ((1, 1), (1, 1), (0, 0), (1, 1), (1, 1))


def as_linear(images: Products) -> Products:
    """Products of linear layers, as convolutions of 1 x 1 images."""

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, _: Geometry) -> Tensor:
        return images.product(values, index, x[..., None, None], bias, _POINT)[..., 0, 0]

    def transposed(values: Tensor, index: Index, gy: Tensor, _: Geometry) -> Tensor:
        return images.transposed(values, index, gy[..., None, None], _POINT)[..., 0, 0]

    def sampled(index: Index, gy: Tensor, x: Tensor, _: Geometry) -> Tensor:
        return images.sampled(index, gy[..., None, None], x[..., None, None], _POINT)

    return Products(product, transposed, sampled)
