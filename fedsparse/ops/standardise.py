"""Weight standardisation over the active weights of each row: standardise.

    w^ = gain (w - mean) / sqrt(sum (w - mean)^2)      the sum of squares at least `least`

which is gain (w - mean) / (std sqrt(N)) of Huang et al., CVPR 2024 (FedMef), N the number of the row's active weights.
With u = (w - mean) s, s = 1 / sqrt(sum (w - mean)^2) and v = gain dw^:

    dw = s (v - mean(v) - u sum(u v)), without the last term where the sum of squares is not above `least`
    dgain = sum(u dw^)

Only w, gain and the row starts are kept for the backward pass.
Back ends: cpu (C++: float32 and float64, sums in double), triton (one kernel each way: the default on CUDA where triton
is installed, but not within torch.compile), else torch, any device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import kernel_backend
from fedsparse.ops.load import define, require_compiled

define("standardise(Tensor values, Tensor gain, Tensor starts, float least) -> Tensor")
define("standardise_gradient(Tensor g, Tensor values, Tensor gain, Tensor starts, float least) -> (Tensor, Tensor)")


@torch.library.register_fake("fedsparse::standardise")
def _(values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
    return torch.empty_like(values)


@torch.library.register_fake("fedsparse::standardise_gradient")
def _(g: Tensor, values: Tensor, gain: Tensor, starts: Tensor, least: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(gain)


class Standardise(torch.autograd.Function):
    """w^ and, once, the gradients of w and gain."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
        """The standardised values."""
        ctx.least, ctx.backend = least, _backend(values)
        ctx.save_for_backward(values, gain, starts)
        return _BACKENDS[ctx.backend][0](values, gain, starts, least)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of values and gain."""
        return *_BACKENDS[ctx.backend][1](g, *ctx.saved_tensors, ctx.least), None, None


def standardise(values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
    """w^ [nnz] of values [nnz], gain [N] and row starts int32 [N + 1]; differentiable once in values and gain."""
    result: Tensor = Standardise.apply(values, gain, starts, least)
    return result


def _reference(values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
    unit, _, _ = _unit(values, starts, least)
    return unit * _spread(gain, starts, len(values))


def _reference_gradient(g: Tensor, values: Tensor, gain: Tensor, starts: Tensor, least: float) -> tuple[Tensor, Tensor]:
    unit, scale, free = _unit(values, starts, least)
    v = g * _spread(gain, starts, len(values))
    along = _row_sums(unit * v, starts) * free
    centred = v - _spread(_row_means(v, starts), starts, len(values)) - unit * _spread(along, starts, len(values))
    return centred * _spread(scale, starts, len(values)), _row_sums(unit * g, starts)


def _unit(values: Tensor, starts: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """(u [nnz], s [N], and [N] whether s depends on the weights)."""
    centred = values - _spread(_row_means(values, starts), starts, len(values))
    squares = _row_sums(centred.square(), starts)
    scale = squares.clamp(min=least).rsqrt()
    return centred * _spread(scale, starts, len(values)), scale, squares > least


def _row_sums(values: Tensor, starts: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=starts, unsafe=True, initial=0)


def _row_means(values: Tensor, starts: Tensor) -> Tensor:
    return _row_sums(values, starts) / starts.diff().clamp(min=1)


def _spread(rows: Tensor, starts: Tensor, count: int) -> Tensor:
    return torch.repeat_interleave(rows, starts.diff(), output_size=count)


def _triton(values: Tensor, gain: Tensor, starts: Tensor, least: float) -> Tensor:
    from fedsparse.kernels import standardise as kernels

    return kernels.standardise(values.contiguous(), gain.contiguous(), starts, least)


def _triton_gradient(g: Tensor, values: Tensor, gain: Tensor, starts: Tensor, least: float) -> tuple[Tensor, Tensor]:
    from fedsparse.kernels import standardise as kernels

    return kernels.standardise_gradient(g.contiguous(), values.contiguous(), gain.contiguous(), starts, least)


_BACKENDS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "cpu": (torch.ops.fedsparse.standardise, torch.ops.fedsparse.standardise_gradient),
    **dict.fromkeys(("triton", "condensed"), (_triton, _triton_gradient)),
    **dict.fromkeys(("dense", "reference"), (_reference, _reference_gradient)),
}


def _backend(values: Tensor) -> str:
    name = kernel_backend("standardise", _BACKENDS, values.device)
    if name == "cpu":
        require_compiled("cpu")
        return name if values.dtype in (torch.float32, torch.float64) else "dense"
    return "dense" if name == "triton" and torch.compiler.is_compiling() else name
