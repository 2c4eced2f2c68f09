"""ReLU that keeps one bit an element for its backward pass: relu.

    relu(x) = min(max(x, 0), limit), NaN stays NaN     d x = dy where the bit is set, else 0

The bit is set where 0 < y < limit; the limit is infinite, or 6 for ReLU6.

torch's ReLU keeps its output, four bytes an element, which is also the input of the next layer; where that layer
stores its input packed, the ReLU would keep the dense tensor alive.
Back ends: cpu (C++), dense and reference (torch, any device).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import checked_backend
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
        y = x.clamp_(0, limit) if inplace else x.clamp(0, limit)
        if inplace:
            ctx.mark_dirty(x)
        if ctx.needs_input_grad[0]:
            ctx.backend = checked_backend("relu", _BACKENDS, x.device)
            ctx.save_for_backward(_BACKENDS[ctx.backend][0](y, limit))
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
    """min(max(x, 0), limit), differentiable, of any order; x of any shape, float32 or float64 (on CUDA any floats)."""
    if checked_backend("relu", _BACKENDS, x.device) == "cpu":
        require_compiled("cpu")
    return Relu.apply(x, inplace, limit)


def _reference_bits(y: Tensor, limit: float) -> Tensor:
    return pack_bits(~((y <= 0) | (y >= limit)).reshape(1, -1)).flatten()


def _reference_gradient(gy: Tensor, bits: Tensor) -> Tensor:
    return torch.where(unpack_bits(bits[None], gy.numel()).reshape(gy.shape), gy, 0)


_BACKENDS: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "cpu": (torch.ops.fedsparse.relu_bits, torch.ops.fedsparse.relu_gradient),
    "dense": (_reference_bits, _reference_gradient),
    "reference": (_reference_bits, _reference_gradient),
}
