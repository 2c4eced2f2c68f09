"""From the values of the active weights to the dense weight and back: unpack, gather.

    unpack(values)  w [N, row_len], w[n, cols[j]] = values[j] in row n, 0 elsewhere   d values = gather(dw)
    gather(w)       values [nnz], values[j] = w[n, cols[j]]                            d w = unpack(dvalues)

Each is the other's adjoint, and both are linear, so derivatives of any order are made of these two. They move bytes
and never round: float16, bfloat16, float32 and float64. The dense back end is made of them.
Back ends: cpu and CUDA (C++: the zeros and the values are written in one pass), reference.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import checked_backend
from fedsparse.ops.index import Index, pick, spread
from fedsparse.ops.load import define, require_compiled
from fedsparse.topology import Topology

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The compiled kernels serve both names: "cpu" is what runs on CPU tensors, "dense" on CUDA tensors.
_BACKENDS = {"cpu": True, "dense": True, "reference": False}

define("unpack(Tensor values, Tensor indptr, Tensor cols, SymInt granularity, int row_len) -> Tensor")
define("gather(Tensor dense, Tensor indptr, Tensor cols, SymInt granularity) -> Tensor")


@torch.library.register_fake("fedsparse::unpack")
def _(values: Tensor, indptr: Tensor, cols: Tensor, granularity: int, row_len: int) -> Tensor:
    return values.new_empty((indptr.shape[0] - 1) * granularity, row_len)


@torch.library.register_fake("fedsparse::gather")
def _(dense: Tensor, indptr: Tensor, cols: Tensor, granularity: int) -> Tensor:
    return dense.new_empty(cols.shape[0] * granularity)


def unpacked(values: Tensor, index: Index, row_len: int) -> Tensor:
    """Dense [N, row_len] of values [nnz], by the compiled kernel; no gradient of its own."""
    require_compiled(values.device.type)
    return torch.ops.fedsparse.unpack(values, index.indptr, index.cols.int(), index.granularity, row_len)


def gathered(dense: Tensor, index: Index) -> Tensor:
    """Values [nnz] of dense [N, row_len], by the compiled kernel; no gradient of its own."""
    require_compiled(dense.device.type)
    return torch.ops.fedsparse.gather(dense, index.indptr, index.cols.int(), index.granularity)


class Unpack(torch.autograd.Function):
    """w = unpack(values); the gradient of values is gather(dw)."""

    @staticmethod
    def forward(ctx: Any, compiled: bool, row_len: int, values: Tensor, *index: Any) -> Tensor:
        """Index as the fields of `Index`."""
        ctx.compiled = compiled
        whole = Index(*index)
        ctx.sizes = whole.sizes
        ctx.save_for_backward(*whole.arrays)
        return (unpacked if compiled else spread)(values, whole, row_len)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of values."""
        index = Index.saved(ctx.saved_tensors, ctx.sizes)
        dvalues = Gather.apply(ctx.compiled, dw, *index) if ctx.needs_input_grad[2] else None
        return None, None, dvalues, *(None for _ in index)


class Gather(torch.autograd.Function):
    """values = gather(w); the gradient of w is unpack(dvalues)."""

    @staticmethod
    def forward(ctx: Any, compiled: bool, dense: Tensor, *index: Any) -> Tensor:
        """Index as the fields of `Index`."""
        ctx.compiled, ctx.row_len = compiled, dense.shape[1]
        whole = Index(*index)
        ctx.sizes = whole.sizes
        ctx.save_for_backward(*whole.arrays)
        return (gathered if compiled else pick)(dense, whole)

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of dense."""
        index = Index.saved(ctx.saved_tensors, ctx.sizes)
        dw = Unpack.apply(ctx.compiled, ctx.row_len, dvalues, *index) if ctx.needs_input_grad[1] else None
        return None, dw, *(None for _ in index)


def unpack(values: Tensor, topology: Topology) -> Tensor:
    """Dense weight of the topology's shape: values at the active places, zeros elsewhere; differentiable.

    Shapes: values [nnz], result (N, C) or (N, C, kh, kw). ValueError for another shape, dtype or device.
    """
    compiled = _compiled("unpack", values, topology)
    if tuple(values.shape) != (topology.nnz,):
        raise ValueError(f"unpack: values must have shape ({topology.nnz},), not {tuple(values.shape)}.")
    row_len = math.prod(topology.shape[1:])
    return Unpack.apply(compiled, row_len, values, *Index.of(topology)).reshape(topology.shape)


def gather(dense: Tensor, topology: Topology) -> Tensor:
    """Values [nnz] of a dense weight at the active places; differentiable.

    Shapes: dense (N, C) or (N, C, kh, kw) as the topology's. ValueError for another shape, dtype or device.
    """
    compiled = _compiled("gather", dense, topology)
    if tuple(dense.shape) != tuple(topology.shape):
        raise ValueError(f"gather: dense must have shape {tuple(topology.shape)}, not {tuple(dense.shape)}.")
    return Gather.apply(compiled, dense.flatten(1), *Index.of(topology))


def _compiled(op: str, operand: Tensor, topology: Topology) -> bool:
    """Whether the active back end is a compiled one, after the checks of both ops."""
    if operand.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{op}: the dtype must be one of {names}, not {operand.dtype}.")
    if topology.device != operand.device:
        raise ValueError(f"{op}: the topology is on {topology.device}, the operand on {operand.device}.")
    compiled = _BACKENDS[checked_backend(op, _BACKENDS, operand.device)]
    if compiled:
        require_compiled(operand.device.type)
    return compiled
