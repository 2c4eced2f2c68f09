"""Three products that are each other's derivatives.

With W the weight that has `values` at the active places and zeros elsewhere,

    product(values, x)      y = W x              d values = sampled(dy, x)   d x  = transposed(values, dy)
    transposed(values, gy)  u = W^T gy           d values = sampled(gy, du)  d gy = product(values, du)
    sampled(gy, x)          v = (gy x^T) active  d gy = product(dv, x)       d x  = transposed(dv, gy)

so that every backward, of any order, is one of the three. Linear layers (spmm) and convolutions (conv2d) are two
families of it; a family has one `Products` for each back end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.backend import checked_backend, is_forced
from fedsparse.ops.index import Index
from fedsparse.ops.load import require_compiled

Geometry = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Products:
    """The three products of a family on one back end; no gradients of their own."""

    product: Callable[[Tensor, Index, Tensor, Tensor | None, Geometry], Tensor]
    transposed: Callable[[Tensor, Index, Tensor, Geometry], Tensor]
    sampled: Callable[[Index, Tensor, Tensor, Geometry], Tensor]


FAMILIES: dict[str, dict[str, Products]] = {}


class How(NamedTuple):
    """What is constant in a call: family, back end, and the geometry of a convolution (empty for linear)."""

    family: str
    backend: str
    geometry: Geometry

    @property
    def raw(self) -> Products:
        """The products to call."""
        return FAMILIES[self.family][self.backend]


class Product(torch.autograd.Function):
    """y = W x + bias, and its gradients where they are asked for."""

    @staticmethod
    def forward(ctx: Any, how: How, values: Tensor, x: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
        """Arguments as in `product`; index as the five arrays of `Index`."""
        ctx.how = how
        needs_values, needs_x = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(values if needs_x else None, x if needs_values else None, *index)
        return how.raw.product(values, Index(*index), x, bias, how.geometry)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values, x and bias."""
        values, x, *index = ctx.saved_tensors
        needs_values, needs_x, needs_bias = ctx.needs_input_grad[1:4]
        dvalues = sampled(ctx.how, gy, x, index) if needs_values else None
        dx = transposed(ctx.how, values, gy, index) if needs_x else None
        dbias = gy.sum((0, *range(2, gy.dim()))) if needs_bias else None
        return None, dvalues, dx, dbias, *(None for _ in index)


class Transposed(torch.autograd.Function):
    """u = W^T gy."""

    @staticmethod
    def forward(ctx: Any, how: How, values: Tensor, gy: Tensor, *index: Tensor) -> Tensor:
        """Arguments as in `transposed`."""
        ctx.how = how
        ctx.save_for_backward(values, gy, *index)
        return how.raw.transposed(values, Index(*index), gy, how.geometry)

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values and gy."""
        values, gy, *index = ctx.saved_tensors
        needs_values, needs_gy = ctx.needs_input_grad[1:3]
        dvalues = sampled(ctx.how, gy, du, index) if needs_values else None
        dgy = product(ctx.how, values, du, None, index) if needs_gy else None
        return None, dvalues, dgy, *(None for _ in index)


class Sampled(torch.autograd.Function):
    """v = gy x^T at the active weights."""

    @staticmethod
    def forward(ctx: Any, how: How, gy: Tensor, x: Tensor, *index: Tensor) -> Tensor:
        """Arguments as in `sampled`."""
        ctx.how = how
        ctx.save_for_backward(gy, x, *index)
        return how.raw.sampled(Index(*index), gy, x, how.geometry)

    @staticmethod
    def backward(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gy and x."""
        gy, x, *index = ctx.saved_tensors
        needs_gy, needs_x = ctx.needs_input_grad[1:3]
        dgy = product(ctx.how, dv, x, None, index) if needs_gy else None
        dx = transposed(ctx.how, dv, gy, index) if needs_x else None
        return None, dgy, dx, *(None for _ in index)


def product(how: How, values: Tensor, x: Tensor, bias: Tensor | None, index: Any) -> Tensor:
    """W x + bias; recorded by autograd where gradients are on."""
    if torch.is_grad_enabled():
        return Product.apply(how, values, x, bias, *index)
    return how.raw.product(values, Index(*index), x, bias, how.geometry)


def transposed(how: How, values: Tensor, gy: Tensor, index: Any) -> Tensor:
    """W^T gy; recorded by autograd where gradients are on."""
    if torch.is_grad_enabled():
        return Transposed.apply(how, values, gy, *index)
    return how.raw.transposed(values, Index(*index), gy, how.geometry)


def sampled(how: How, gy: Tensor, x: Tensor, index: Any) -> Tensor:
    """The entries of gy x^T at the active weights; recorded by autograd where gradients are on."""
    if torch.is_grad_enabled():
        return Sampled.apply(how, gy, x, *index)
    return how.raw.sampled(Index(*index), gy, x, how.geometry)


def backend_of(op: str, family: str, operand: Tensor) -> str:
    """The back end of a family's op; "chosen" where each pass takes the faster of sparse kernels and dense torch."""
    name = checked_backend(op, FAMILIES[family], operand.device)
    if name != "cpu":
        return name
    require_compiled("cpu")
    chooses = operand.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()
    return "chosen" if chooses and not is_forced() else name


def check_operand(op: str, name: str, operand: Tensor, dims: int, like: Tensor) -> None:
    """ValueError where an operand has the wrong number of dimensions, dtype or device."""
    if operand.dim() != dims:
        raise ValueError(f"{op}: {name} must have {dims} dimensions, not {operand.dim()}.")
    if not operand.is_floating_point() or operand.dtype != like.dtype:
        raise ValueError(f"{op}: {name} must have the floating dtype of the other operands, not {operand.dtype}.")
    if operand.device != like.device:
        raise ValueError(f"{op}: {name} is on {operand.device}, the other operands on {like.device}.")


def check_values(op: str, values: Tensor, nnz: int, like: Tensor) -> None:
    """ValueError where values are not [nnz] of the dtype and device of the other operands."""
    check_operand(op, "values", values, 1, like)
    if values.shape[0] != nnz:
        raise ValueError(f"{op}: values must have {nnz} entries, one for each active weight, not {values.shape[0]}.")


def check_bias(op: str, bias: Tensor | None, rows: int, like: Tensor) -> None:
    """ValueError where a bias is not [N] of the dtype and device of the other operands."""
    if bias is None:
        return
    check_operand(op, "bias", bias, 1, like)
    if bias.shape[0] != rows:
        raise ValueError(f"{op}: bias must have {rows} entries, not {bias.shape[0]}.")
