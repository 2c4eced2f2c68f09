"""Three products that are each other's derivatives.

With W the weight that has `values` at the active places and zeros elsewhere,

    product(values, x)      y = W x              d values = sampled(dy, x)   d x  = transposed(values, dy)
    transposed(values, gy)  u = W^T gy           d values = sampled(gy, du)  d gy = product(values, du)
    sampled(gy, x)          v = (gy x^T) active  d gy = product(dv, x)       d x  = transposed(dv, gy)

so that every backward, of any order, is one of the three. Linear layers (spmm) and convolutions (conv2d) are two
families of it; a family has one `Products` for each back end.

Under `torch.func.vmap` the mapped dimension is that of clients, who share the mask and differ in values and data: the
Triton back end does them in one launch, the others one client after the other, to the bits that each has alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.backend import checked_backend, has_kernels, is_forced, runs_triton
from fedsparse.ops.index import Index
from fedsparse.ops.load import require_compiled

Geometry = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Products:
    """The three products of a family on one back end; no gradients of their own."""

    product: Callable[[Tensor, Index, Tensor, Tensor | None, Geometry], Tensor]
    transposed: Callable[[Tensor, Index, Tensor, Geometry], Tensor]
    sampled: Callable[[Index, Tensor, Tensor, Geometry], Tensor]


FAMILIES: dict[str, dict[str, Products | Callable[[int, bool], Products]]] = {}
"""By family and back end; those that depend on the mask's granularity or take several clients as a function of both."""
_NO_INDEX = (None,) * len(Index._fields)


def _keep(ctx: Any, index: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Keep the sizes of an index; its arrays, to be saved."""
    ctx.sizes = Index(*index).sizes
    return Index(*index).arrays


class How(NamedTuple):
    """What is constant in a call.

    family, back end, geometry of a convolution (empty for linear), granularity of the mask, and whether the operands
    have a dimension of clients before all others.
    """

    family: str
    backend: str
    geometry: Geometry
    granularity: int = 1
    clients: bool = False

    @property
    def raw(self) -> Products:
        """The products to call."""
        return products_of(self.family, self.backend, self.granularity, self.clients)

    @property
    def takes_clients(self) -> bool:
        """Whether the back end does several clients in one call."""
        return self.backend in ("triton", "condensed")


def products_of(family: str, backend: str, granularity: int = 1, clients: bool = False) -> Products:
    """The products of a family on a back end, for masks of that granularity, of one client or several at once."""
    found = FAMILIES[family][backend]
    return found if isinstance(found, Products) else found(granularity, clients)


def output_size(size: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """(H', W') of an input of (H, W); geometry is (kernel, stride, padding, dilation)."""
    kernel, stride, padding, dilation = geometry[:4]
    high, wide = ((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return high, wide


class Product(torch.autograd.Function):
    """y = W x + bias, and its gradients where they are asked for."""

    @staticmethod
    def forward(how: How, values: Tensor, x: Tensor, bias: Tensor | None, *index: Any) -> Tensor:
        """Arguments as in `product`; index as the fields of `Index`."""
        return how.raw.product(values, Index(*index), x, bias, how.geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """What the backward pass needs."""
        ctx.how, values, x, _, *index = inputs
        needs_values, needs_x = ctx.needs_input_grad[1:3]
        arrays = _keep(ctx, tuple(index))
        ctx.save_for_backward(values if needs_x else None, x if needs_values else None, *arrays)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values, x and bias."""
        values, x, *arrays = ctx.saved_tensors
        index = Index.saved(arrays, ctx.sizes)
        needs_values, needs_x, needs_bias = ctx.needs_input_grad[1:4]
        dvalues = sampled(ctx.how, gy, x, index) if needs_values else None
        dx = transposed(ctx.how, values, gy, index) if needs_x else None
        dbias = _bias_gradient(gy, ctx.how.clients) if needs_bias else None
        return None, dvalues, dx, dbias, *_NO_INDEX

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], how: How, *operands: Any) -> tuple[Tensor, int]:
        """The clients' products: y [clients, B, N, ...]."""
        values, x, bias, *index = operands
        if any(dim is not None for dim in in_dims[4:]):
            raise ValueError(f"{how.family}: clients that are computed together must have one mask, not one each.")
        values, x = (_clients_first(each, dim, info.batch_size) for each, dim in zip((values, x), in_dims[1:3]))
        bias = None if bias is None else _clients_first(bias, in_dims[3], info.batch_size)
        if how.takes_clients:
            return Product.apply(how._replace(clients=True), values, x, bias, *index), 0
        biases = [None] * info.batch_size if bias is None else bias
        return torch.stack([Product.apply(how, v, each, b, *index) for v, each, b in zip(values, x, biases)]), 0


def _clients_first(operand: Tensor, dim: int | None, clients: int) -> Tensor:
    """[clients, ...] of an operand whose clients stand in `dim`, or that they share."""
    return operand.expand(clients, *operand.shape) if dim is None else operand.movedim(dim, 0)


def _bias_gradient(gy: Tensor, clients: bool) -> Tensor:
    """dbias [N] of gy [B, N, ...], or [clients, N] of [clients, B, N, ...]."""
    first = 1 if clients else 0
    return gy.sum((first, *range(first + 2, gy.dim())))


class Transposed(torch.autograd.Function):
    """u = W^T gy."""

    @staticmethod
    def forward(ctx: Any, how: How, values: Tensor, gy: Tensor, *index: Any) -> Tensor:
        """Arguments as in `transposed`, index as its fields."""
        ctx.how = how
        ctx.save_for_backward(values, gy, *_keep(ctx, index))
        return how.raw.transposed(values, Index(*index), gy, how.geometry)

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values and gy."""
        values, gy, *arrays = ctx.saved_tensors
        index = Index.saved(arrays, ctx.sizes)
        needs_values, needs_gy = ctx.needs_input_grad[1:3]
        dvalues = sampled(ctx.how, gy, du, index) if needs_values else None
        dgy = product(ctx.how, values, du, None, index) if needs_gy else None
        return None, dvalues, dgy, *_NO_INDEX


class Sampled(torch.autograd.Function):
    """v = gy x^T at the active weights."""

    @staticmethod
    def forward(ctx: Any, how: How, gy: Tensor, x: Tensor, *index: Any) -> Tensor:
        """Arguments as in `sampled`, index as its fields."""
        ctx.how = how
        ctx.save_for_backward(gy, x, *_keep(ctx, index))
        return how.raw.sampled(Index(*index), gy, x, how.geometry)

    @staticmethod
    def backward(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gy and x."""
        gy, x, *arrays = ctx.saved_tensors
        index = Index.saved(arrays, ctx.sizes)
        needs_gy, needs_x = ctx.needs_input_grad[1:3]
        dgy = product(ctx.how, dv, x, None, index) if needs_gy else None
        dx = transposed(ctx.how, dv, gy, index) if needs_x else None
        return None, dgy, dx, *_NO_INDEX


def product(how: How, values: Tensor, x: Tensor, bias: Tensor | None, index: Any) -> Tensor:
    """W x + bias; recorded by autograd where gradients are on."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
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


def backend_of(op: str, family: str, operand: Tensor, granularity: int = 1) -> str:
    """The back end of a family's op; "chosen" where each pass takes the faster of sparse kernels and dense torch.

    The sparse kernels of the CPU know float32 and float64; half types (autocast) run on dense torch, but for
    convolutions in bfloat16 where there are matrix tiles for masks of that granularity. "chosen on a GPU" is for CUDA
    tensors where Triton is installed.
    """
    name = checked_backend(op, FAMILIES[family], operand.device)
    if operand.is_cuda and name == "dense" and not is_forced() and not torch.compiler.is_compiling():
        return "chosen on a GPU" if runs_triton(operand.device) else name
    if name != "cpu":
        return name
    require_compiled("cpu")
    if is_forced():
        return name
    whole = operand.dtype in (torch.float32, torch.float64)
    if torch.compiler.is_compiling():
        return name if whole else "dense"
    return "chosen" if whole or (family == "conv2d" and has_kernels(operand.dtype, granularity)) else "dense"


def autocast(*operands: Tensor | None) -> tuple[Any, ...]:
    """The operands in the dtype of `torch.autocast` where that is on for their device; the cast has a gradient.

    As autocast does for torch's products: float64 stays.
    """
    kind = next(x.device.type for x in operands if x is not None)
    if not torch.is_autocast_enabled(kind):
        return operands
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x is not None and _may_be_cast(x) else x for x in operands)


def _may_be_cast(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64


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
