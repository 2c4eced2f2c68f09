"""ReLU that keeps one bit an element for its backward pass: relu.

    relu(x) = min(max(x, 0), limit), NaN stays NaN     d x = dy where the bit is set, else 0

The bit is set where 0 < y < limit; the limit is infinite, or 6 for ReLU6.

torch's ReLU keeps its output, four bytes an element, which is also the input of the next layer; where that layer
stores its input packed, the ReLU would keep the dense tensor alive.
Back ends: cpu (C++, float32 and float64), triton (one kernel each way, on x as it stands in memory: the default on CUDA
where triton is installed, but not within torch.compile), dense and reference (torch, any device; half types there).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import kernel_backend
from fedsparse.ops.load import define, require_compiled
from fedsparse.ops.pack_activation import pack_bits, unpack_bits

define("relu_bits(Tensor y, float limit) -> Tensor")
define("relu_gradient(Tensor gy, Tensor bits) -> Tensor")
define("relu_gradient_(Tensor(a!) gy, Tensor bits) -> ()")


@torch.library.register_fake("fedsparse::relu_bits")
def _(y: Tensor, limit: float) -> Tensor:
    return y.new_empty((y.numel() + 7) // 8, dtype=torch.uint8)


@torch.library.register_fake("fedsparse::relu_gradient")
def _(gy: Tensor, bits: Tensor) -> Tensor:
    return torch.empty_like(gy, memory_format=torch.contiguous_format)


class Relu(torch.autograd.Function):
    """y = min(max(x, 0), limit); linear in dy, so that derivatives of any order are made of the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool, limit: float) -> Tensor:
        """The output; with inplace it is x."""
        if inplace:
            ctx.mark_dirty(x)
        if not ctx.needs_input_grad[0]:
            return _clamped(x, limit, inplace)
        ctx.backend = _backend(x)
        y, bits = _BACKENDS[ctx.backend][0](x, limit, inplace)
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x."""
        return ReluGradient.apply(gy, *ctx.saved_tensors, ctx.backend), None, None


class ReluGradient(torch.autograd.Function):
    """dx = dy where the bit is set, else 0."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, bits: Tensor, backend: str) -> Tensor:
        """Bits as `relu_bits` makes them."""
        ctx.backend = backend
        ctx.save_for_backward(bits)
        return _BACKENDS[backend][1](gy, bits)

    @staticmethod
    def backward(ctx: Any, ggx: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of gy."""
        return ReluGradient.apply(ggx, *ctx.saved_tensors, ctx.backend), None, None


def relu(x: Tensor, inplace: bool = False, limit: float = math.inf) -> Tensor:
    """min(max(x, 0), limit), differentiable, of any order; x of any shape and floating dtype."""
    if _backend(x) == "cpu":
        require_compiled("cpu")
    if _backend(x) != "triton" or inplace or x.is_contiguous():
        return Relu.apply(x, inplace, limit)
    order = sorted(range(x.dim()), key=x.stride, reverse=True)  # as it stands in memory: no copy
    back = [order.index(dim) for dim in range(x.dim())]
    return Relu.apply(x.permute(order), inplace, limit).permute(back)


def _backend(x: Tensor) -> str:
    name = kernel_backend("relu", _BACKENDS, x.device)
    if name == "cpu" and x.dtype not in (torch.float32, torch.float64):
        return "dense"
    return "dense" if name == "triton" and (x.numel() >= 2**31 or torch.compiler.is_compiling()) else name


def _clamped(x: Tensor, limit: float, inplace: bool) -> Tensor:
    return x.clamp_(0, limit) if inplace else x.clamp(0, limit)


def _compiled(x: Tensor, limit: float, inplace: bool) -> tuple[Tensor, Tensor]:
    y = _clamped(x, limit, inplace)
    return y, torch.ops.fedsparse.relu_bits(y, limit)


def _reference(x: Tensor, limit: float, inplace: bool) -> tuple[Tensor, Tensor]:
    y = _clamped(x, limit, inplace)
    return y, pack_bits(~((y <= 0) | (y >= limit)).reshape(1, -1)).flatten()


def _reference_gradient(gy: Tensor, bits: Tensor) -> Tensor:
    return torch.where(unpack_bits(bits[None], gy.numel()).reshape(gy.shape), gy, 0)


def _triton(x: Tensor, limit: float, inplace: bool) -> tuple[Tensor, Tensor]:
    from fedsparse.kernels import relu as kernels

    if x.is_contiguous():
        return kernels.relu(x, limit, inplace)
    y, bits = kernels.relu(x.contiguous(), limit)
    return (x.copy_(y), bits) if inplace else (y, bits)


def _triton_gradient(gy: Tensor, bits: Tensor) -> Tensor:
    from fedsparse.kernels import relu as kernels

    return kernels.relu_gradient(gy.contiguous(), bits)


Forward = Callable[[Tensor, float, bool], tuple[Tensor, Tensor]]
_BACKENDS: dict[str, tuple[Forward, Callable[[Tensor, Tensor], Tensor]]] = {
    "cpu": (_compiled, torch.ops.fedsparse.relu_gradient),
    "triton": (_triton, _triton_gradient),
    "condensed": (_triton, _triton_gradient),
    "dense": (_reference, _reference_gradient),
    "reference": (_reference, _reference_gradient),
}
