"""Masks of single weights on tensor cores: 16 consecutive output channels keep the union of their columns as a strip.

The strip holds zeros where a row has no weight: at density d a column of the union is 16 d / (1 - (1 - d)^16) full, so
that this is for low densities (at 5 % the union is 56 % of all columns, at 1 % 15 %). The products are those of
the kernels of strips; the gradient to the input, which would gain nothing, and float64 run on `kernels.direct`.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fedsparse.ops.algebra import Geometry, Products, output_size
from fedsparse.ops.index import Index, rows_of, single_rows
from fedsparse.ops.strips import allows_tf32, lanes_product, lanes_sampled, lanes_transposed, on_lanes

ROWS = 16
_plans: Any = WeakIdKeyDictionary()


class Union(NamedTuple):
    """The strips of a mask: starts int32 [ceil(N / 16) + 1], cols int32 [entries] as in `strips.Plan`.

    place: int64 [nnz], where each value stands among the entries * 16 numbers of the strips.
    """

    starts: Tensor
    cols: Tensor
    place: Tensor

    @property
    def entries(self) -> int:
        """Columns of all strips."""
        return self.cols.shape[0]


def union(index: Index, width: int) -> Union:
    """The strips of a mask with rows of `width` places; made once for a mask, which waits for a GPU."""
    if index.cols not in _plans:
        row = rows_of(index)
        found, entry = torch.unique(row // ROWS * width + single_rows(index)[1], return_inverse=True)
        counts = torch.bincount(found // width, minlength=-(-index.rows // ROWS))
        starts = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        _plans[index.cols] = Union(starts, (found % width).to(torch.int32), entry * ROWS + row % ROWS)
    return _plans[index.cols]


def _of(index: Index, geometry: Geometry) -> Union:
    return union(index, index.channels * math.prod(geometry[0]))


def _all_rows(x: Tensor, rows: int, dim: int) -> Tensor:
    """With zero rows up to a multiple of 16."""
    missing = -rows % ROWS
    return x if not missing else F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing))


def condensed_product(
    values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry, tf32: bool
) -> Tensor:
    """y [clients, N, H', W', G, 16] of x [clients, C, H, W, G, 16], values [clients, nnz] and bias [clients, N]."""
    from fedsparse.kernels.strip_product import strip_product

    if x.dtype == torch.float64:
        return lanes_product(1, values, index, x, bias, geometry, tf32)
    of, clients = _of(index, geometry), values.shape[0]
    packed = x.new_zeros(clients, of.entries * ROWS).index_copy_(1, of.place, values.to(x.dtype))
    size = output_size((x.shape[2], x.shape[3]), geometry)
    all_bias = None if bias is None else _all_rows(bias, index.rows, 1)
    packed = packed.view(clients, of.entries, ROWS)
    return strip_product(packed, of.starts, of.cols, x, all_bias, geometry[:4], size, tf32)[:, : index.rows]


def condensed_sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry, tf32: bool) -> Tensor:
    """dvalues [clients, nnz] of gy [clients, N, H', W', G, 16] and x [clients, C, H, W, G, 16]."""
    from fedsparse.kernels.strip_sample import strip_sample

    if x.dtype == torch.float64:
        return lanes_sampled(1, index, gy, x, geometry, tf32)
    of = _of(index, geometry)
    all_gy = _all_rows(gy, index.rows, 1)
    parts = strip_sample(all_gy, x, of.starts, of.cols, ROWS, geometry[:4], tf32)
    return parts.sum(0).flatten(1).index_select(1, of.place).to(x.dtype)


@cache
def convolutions(clients: bool, linear: bool = False) -> Products:
    """The three products on ordinary tensors, as `strips.convolutions`."""

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return condensed_product(values, index, x, bias, geometry, allows_tf32(linear))

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        return lanes_transposed(1, values, index, gy, geometry, allows_tf32(linear))

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return condensed_sampled(index, gy, x, geometry, allows_tf32(linear))

    return on_lanes(Products(product, transposed, sampled), clients)
