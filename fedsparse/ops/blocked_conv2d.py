"""conv2d on blocked tensors (see `blocked`): the same three products, without leaving the layout.

    blocked_conv2d(values, x)            y [blocks, N, H', W', L] = W * x [blocks, C, H, W, L] (+ bias [N])
    blocked_conv2d_input(values, gy)     dx [blocks, C, H, W, L]
    blocked_conv2d_weight(gy, x, batch)  dvalues [nnz], over the `batch` true images

Each runs in the layout, or leaves it for dense torch and enters it again, whichever `dispatch` says is faster, unless
`use_backend("cpu")` is in force. Geometry as in `conv2d`. Kept for the backward: x and values. Once differentiable: a
second derivative needs the ordinary layout. CPU only (C++, float32 and float64).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsparse.ops import dispatch
from fedsparse.ops.algebra import (
    Geometry,
    Products,
    check_bias,
    check_operand,
    check_values,
    output_size,
    products_of,
)
from fedsparse.ops.backend import is_forced
from fedsparse.ops.blocked import check_batch, check_blocked, reference_from_blocked, reference_to_blocked
from fedsparse.ops.conv2d import Size, pair
from fedsparse.ops.index import Index
from fedsparse.ops.load import define
from fedsparse.topology import Topology

_GEOMETRY = "int[2] kernel, int[2] stride, int[2] padding, int[2] dilation"

define(
    f"blocked_conv2d(Tensor values, Tensor indptr, Tensor cols, SymInt granularity, Tensor x, Tensor? bias, "
    f"{_GEOMETRY}) -> Tensor"
)
define(
    "blocked_conv2d_input(Tensor values, Tensor indptr, Tensor cols, Tensor? t_indptr, Tensor? t_cols, Tensor? t_perm, "
    f"SymInt granularity, SymInt channels, Tensor gy, int[2] size, {_GEOMETRY}) -> Tensor"
)
define(
    "blocked_conv2d_weight(Tensor indptr, Tensor cols, SymInt granularity, Tensor gy, Tensor x, SymInt batch, "
    f"{_GEOMETRY}) -> Tensor"
)


@torch.library.register_fake("fedsparse::blocked_conv2d")
def _(
    values: Tensor, indptr: Tensor, cols: Tensor, granularity: int, x: Tensor, bias: Tensor | None, *geometry: Any
) -> Tensor:
    blocks, _, high, wide, lanes = x.shape
    return x.new_empty(blocks, (indptr.shape[0] - 1) * granularity, *output_size((high, wide), geometry), lanes)


@torch.library.register_fake("fedsparse::blocked_conv2d_input")
def _(
    values: Tensor,
    indptr: Tensor,
    cols: Tensor,
    t_indptr: Tensor | None,
    t_cols: Tensor | None,
    t_perm: Tensor | None,
    granularity: int,
    channels: int,
    gy: Tensor,
    size: tuple[int, int],
    *geometry: Any,
) -> Tensor:
    return gy.new_empty(gy.shape[0], channels, *size, gy.shape[4])


@torch.library.register_fake("fedsparse::blocked_conv2d_weight")
def _(indptr: Tensor, cols: Tensor, granularity: int, gy: Tensor, x: Tensor, batch: int, *geometry: Any) -> Tensor:
    return gy.new_empty(cols.shape[0] * granularity)


def reference_blocked_conv2d(
    values: Tensor, index: Index, x: Tensor, bias: Tensor | None, batch: int, geometry: Geometry
) -> Tensor:
    """blocked_conv2d by the reference of conv2d."""
    product = products_of("conv2d", "reference").product
    return reference_to_blocked(product(values, index, reference_from_blocked(x, batch), bias, geometry))


@lru_cache(64)
def _products(batch: int, forced: bool) -> Products:
    """The three products of that many images: within the layout, or whichever is faster."""
    within = _within(batch)
    return within if forced else dispatch.products("blocked_conv2d", {"cpu": within, "dense": _outside(batch)}, batch)


def _within(batch: int) -> Products:
    raw = torch.ops.fedsparse

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return raw.blocked_conv2d(values, index.indptr, index.cols, index.granularity, x, bias, *geometry[:4])

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        *sizes, size = geometry
        return raw.blocked_conv2d_input(values, *index, gy, size, *sizes)

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return raw.blocked_conv2d_weight(index.indptr, index.cols, index.granularity, gy, x, batch, *geometry[:4])

    return Products(product, transposed, sampled)


def _outside(batch: int) -> Products:
    """Dense torch on ordinary tensors."""
    dense, enter = products_of("conv2d", "dense"), torch.ops.fedsparse.to_blocked

    def leave(blocks: Tensor) -> Tensor:
        return torch.ops.fedsparse.from_blocked(blocks, batch)

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return enter(dense.product(values, index, leave(x), bias, geometry))

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        return enter(dense.transposed(values, index, leave(gy), geometry))

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return dense.sampled(index, leave(gy), leave(x), geometry)

    return Products(product, transposed, sampled)


class BlockedConv2d(torch.autograd.Function):
    """y = W * x + bias, and its gradients where they are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        geometry: Geometry,
        batch: int,
        values: Tensor,
        x: Tensor,
        bias: Tensor | None,
        *index: Any,
    ) -> Tensor:
        """Geometry as (kernel, stride, padding, dilation); index as the fields of `Index`."""
        ctx.geometry, ctx.batch, ctx.size = geometry, batch, tuple(x.shape[2:4])
        needs_values, needs_x = ctx.needs_input_grad[2:4]
        whole = Index(*index)
        ctx.sizes = whole.sizes
        ctx.save_for_backward(values if needs_x else None, x if needs_values else None, *whole.arrays)
        ctx.products = _products(batch, is_forced())
        return ctx.products.product(values, whole, x, bias, (*geometry, ctx.size))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values, x and bias."""
        values, x, *arrays = ctx.saved_tensors
        needs_values, needs_x, needs_bias = ctx.needs_input_grad[2:5]
        products, geometry, index = ctx.products, (*ctx.geometry, ctx.size), Index.saved(arrays, ctx.sizes)
        dvalues = products.sampled(index, gy, x, geometry) if needs_values else None
        dx = products.transposed(values, index, gy, geometry) if needs_x else None
        dbias = torch.ops.fedsparse.blocked_sum(gy, ctx.batch) if needs_bias else None
        return None, None, dvalues, dx, dbias, *(None for _ in index)


def blocked_conv2d(
    values: Tensor,
    topology: Topology,
    x: Tensor,
    batch: int,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """y = W * x + bias, differentiable in values, x and bias.

    Shapes: values [nnz], x [blocks, C, H, W, L] with `batch` images, bias [N] or None, y [blocks, N, H', W', L].
    ValueError otherwise.
    """
    op = "blocked_conv2d"
    check_blocked(op, "x", x)
    check_batch(op, x, batch)
    if len(topology.shape) != 4:
        raise ValueError(f"{op}: the topology must have shape (N, C, kh, kw), not {topology.shape}.")
    check_operand(op, "values", values, 1, x)
    check_values(op, values, topology.nnz, x)
    check_bias(op, bias, topology.rows, x)
    if x.shape[1] != topology.channels:
        raise ValueError(f"{op}: x must have {topology.channels} channels, not {x.shape[1]}.")
    pairs = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    geometry = (topology.kernel, *pairs)
    if min(output_size((x.shape[2], x.shape[3]), geometry)) < 1:
        raise ValueError(f"{op}: the kernel {topology.kernel} with dilation {pairs[2]} exceeds the padded input.")
    return BlockedConv2d.apply(geometry, batch, values, x, bias, *Index.of(topology))
