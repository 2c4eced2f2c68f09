"""conv2d on blocked tensors (see `blocked`): the same three products, without leaving the layout.

    blocked_conv2d(values, x)            y [blocks, N, H', W', L] = W * x [blocks, C, H, W, L] (+ bias [N])
    blocked_conv2d_input(values, gy)     dx [blocks, C, H, W, L]
    blocked_conv2d_weight(gy, x, batch)  dvalues [nnz], over the `batch` true images

Each runs in the layout, or leaves it for dense torch and enters it again, whichever `dispatch` says is faster, unless
`use_backend("cpu")` is in force. Geometry as in `conv2d`. Kept for the backward: x and values. Once differentiable: a
second derivative needs the ordinary layout. CPU only (C++, float32 and float64; strips in bfloat16 on AMX: `amx`, else
dense torch).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

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
from fedsparse.ops.backend import has_kernels, is_forced
from fedsparse.ops.blocked import PRODUCT_LANES, check_batch, check_blocked
from fedsparse.ops.conv2d import Size, pair
from fedsparse.ops.index import Index
from fedsparse.ops.kept import Kept, is_last, only_here, parts_of
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
define(
    f"blocked_conv2d_weight_(Tensor(a!) dvalues, Tensor indptr, Tensor cols, SymInt granularity, Tensor gy, Tensor x, "
    f"SymInt batch, {_GEOMETRY}) -> ()"
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


class Layer(NamedTuple):
    """What is constant in a call: topology, images of the batch, and geometry with the size of the input."""

    topology: Topology
    batch: int
    geometry: Geometry

    def products(self, dtype: torch.dtype) -> Products:
        """The three products: within the layout, or each where it is faster."""
        within = _within(self.batch)
        if is_forced():
            return within
        if not has_kernels(dtype, self.topology.granularity):
            return _outside(self.batch)
        candidates = {"cpu": within, "dense": _outside(self.batch)}
        if dispatch.is_measuring():
            return dispatch.products("blocked_conv2d", candidates, self.batch)
        known = _chosen.setdefault(self.topology, {})
        key = (self.batch, self.geometry, dtype, dispatch.situation())
        if key not in known:
            known[key] = self._choose(candidates, dtype)
        return known[key]

    def _choose(self, candidates: Mapping[str, Products], dtype: torch.dtype) -> Products:
        index, (*sizes, size) = Index.of(self.topology), self.geometry
        where = (index, tuple(sizes), size, self.batch, dtype)
        names = ("product", "transposed", "sampled")
        works = (dispatch.pass_of("blocked_conv2d", name, *where) for name in names)
        return Products(*(getattr(candidates[dispatch.choose(work).name], name) for work, name in zip(works, names)))


_chosen: WeakKeyDictionary[Topology, dict[Any, Products]] = WeakKeyDictionary()
"""By topology, since a choice is made for every pass of every step and depends on the mask."""


@lru_cache(64)
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


@lru_cache(64)
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
    def forward(ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, layer: Layer, kept: Kept | None) -> Tensor:
        """Arguments as in `blocked_conv2d`."""
        needs_values, needs_x = ctx.needs_input_grad[:2]
        ctx.kept = kept if needs_values else None
        ctx.save_for_backward(values if needs_x else None, x if needs_values and kept is None else None)
        ctx.layer, ctx.products = layer, layer.products(x.dtype)
        return ctx.products.product(values, Index.of(layer.topology), x, bias, layer.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values, x and bias."""
        values, x = ctx.saved_tensors
        needs_values, needs_x, needs_bias = ctx.needs_input_grad[:3]
        products, (topology, batch, geometry) = ctx.products, ctx.layer
        index = Index.of(topology)
        dvalues = None
        if needs_values and x is not None:
            dvalues = products.sampled(index, gy, x, geometry)
        elif needs_values:
            dvalues = _sampled_in_parts(products, index, gy, ctx.kept, batch, geometry)
            ctx.kept = None if is_last() else ctx.kept
        dbias = torch.ops.fedsparse.blocked_sum(gy, batch) if needs_bias else None
        dx = _transposed_in_parts(products, values, index, gy, batch, geometry) if needs_x else None
        return dvalues, dx, dbias, None, None


def runs_in_parts(product: str, index: Index, x: Tensor, batch: int, geometry: Geometry) -> bool:
    """Whether a pass runs on the sparse kernels, which do some blocks after others to the same bits.

    product: "product", "transposed" or "sampled"; x: the input, or a tensor of its size.
    """
    if is_forced():
        return True
    if not has_kernels(x.dtype, index.granularity):
        return False
    where = (geometry[:4], (x.shape[2], x.shape[3]), batch, x.dtype)
    choice = dispatch.choose(dispatch.pass_of("blocked_conv2d", product, index, *where))
    return choice.name == "cpu" and not dispatch.is_measuring()


def conv2d_again(
    values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry, batch: int
) -> Tensor:
    """blocked_conv2d of all blocks of `batch` images, or where it `runs_in_parts` of some; no gradients."""
    if is_forced() or runs_in_parts("product", index, x, batch, geometry):
        return torch.ops.fedsparse.blocked_conv2d(
            values, index.indptr, index.cols, index.granularity, x, bias, *geometry[:4]
        )
    candidates = {"cpu": _within(batch), "dense": _outside(batch)}
    outside = dispatch.products("blocked_conv2d", candidates, batch)
    return outside.product(values, index, x, bias, (*geometry[:4], (x.shape[2], x.shape[3])))


def _sampled_in_parts(
    products: Products, index: Index, gy: Tensor, kept: Kept, batch: int, geometry: Geometry
) -> Tensor:
    """The gradient of the values from what is kept of x."""
    parts = kept.parts()
    sizes = torch.empty(0, dtype=gy.dtype).new_empty((1, 1, *geometry[4]), device="meta")
    if len(parts) == 1 or not runs_in_parts("sampled", index, sizes, batch, geometry):
        return products.sampled(index, gy, kept.get(), geometry)
    dvalues, lanes = gy.new_zeros(index.nnz), gy.shape[4]
    for first, end in parts:
        images = min(batch, end * lanes) - first * lanes
        torch.ops.fedsparse.blocked_conv2d_weight_(
            dvalues,
            index.indptr,
            index.cols,
            index.granularity,
            gy[first:end],
            kept.part(first, end),
            images,
            *geometry[:4],
        )
    return dvalues


def _transposed_in_parts(
    products: Products, values: Tensor, index: Index, gy: Tensor, batch: int, geometry: Geometry
) -> Tensor:
    """The gradient of x, in the place of gy where both have one size and nobody else holds gy."""
    parts = parts_of(gy.shape[0], gy.nbytes)
    same = gy.shape[1] == index.channels and gy.shape[2:4] == geometry[4]
    if len(parts) == 1 or not same or not only_here(gy):
        return products.transposed(values, index, gy, geometry)
    if not runs_in_parts("transposed", index, gy, batch, geometry):
        return products.transposed(values, index, gy, geometry)
    *sizes, size = geometry
    for first, end in parts:
        part = gy[first:end]
        part.copy_(torch.ops.fedsparse.blocked_conv2d_input(values, *index, part, size, *sizes))
    return gy


def blocked_conv2d(
    values: Tensor,
    topology: Topology,
    x: Tensor,
    batch: int,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    kept: Kept | None = None,
) -> Tensor:
    """y = W * x + bias, differentiable in values, x and bias. `kept` gives x in the backward pass, which keeps no x.

    Shapes: values [nnz], x [blocks, C, H, W, L] with `batch` images, bias [N] or None, y [blocks, N, H', W', L].
    ValueError otherwise.
    """
    op = "blocked_conv2d"
    check_blocked(op, "x", x, PRODUCT_LANES)
    check_batch(op, x, batch)
    if len(topology.shape) != 4:
        raise ValueError(f"{op}: the topology must have shape (N, C, kh, kw), not {topology.shape}.")
    check_operand(op, "values", values, 1, x)
    check_values(op, values, topology.nnz, x)
    check_bias(op, bias, topology.rows, x)
    if x.shape[1] != topology.channels:
        raise ValueError(f"{op}: x must have {topology.channels} channels, not {x.shape[1]}.")
    geometry = _geometry(op, topology.kernel, stride, padding, dilation, (x.shape[2], x.shape[3]))
    return BlockedConv2d.apply(values, x, bias, Layer(topology, batch, geometry), kept)


@lru_cache(1024)
def _geometry(
    op: str, kernel: tuple[int, int], stride: Size, padding: Size, dilation: Size, size: tuple[int, int]
) -> Geometry:
    pairs = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    if min(output_size(size, (kernel, *pairs))) < 1:
        raise ValueError(f"{op}: the kernel {kernel} with dilation {pairs[2]} exceeds the padded input.")
    return kernel, *pairs, size
