"""Batch norm and group norm on blocked tensors, with residual addition and ReLU in the same pass.

    y = relu(z * weight + bias + residual),  z = (x - mean) * rstd,  rstd = 1 / sqrt(variance + eps)

Batch norm (Ioffe and Szegedy, ICML 2015): mean and variance [C] over the B true images and all pixels. Group norm (Wu
and He, ECCV 2018): over the channels of a group and all pixels of one image, [blocks, groups, L]. Both are computed in
two passes, sums of planes in float64.

    m  = dy where y > 0 (dy without ReLU)          dresidual = m
    dweight = sum m z,  dbias = sum m              dx = weight rstd (m - mean(m) - z mean(m z))

with the means over what the statistics were taken of, and without them for given statistics (eval). Group norm has
weight inside the means.

Kept for the backward: x and the statistics; y as well where a residual and ReLU are fused (it is the next layer's
input, which that layer keeps anyway). Without a residual ReLU is read off x.Torch's own layers keep x, y of the
norm's ReLU and, for an addition, as much; but lanes without an image are kept here too. Once differentiable. CPU only
(C++, float32 and float64).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsparse.ops.blocked import check_batch, check_blocked
from fedsparse.ops.blocked_statistics import Statistics, group_factors
from fedsparse.ops.kept import Kept, is_last, only_here
from fedsparse.ops.load import define

_BACKWARD = "Tensor gy, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, Tensor? out, bool relu"
_GRADIENTS = "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"

define("blocked_norm(Tensor x, Tensor scale, Tensor shift, Tensor? residual, bool relu) -> Tensor")
define("blocked_norm_(Tensor(a!) y, Tensor x, Tensor scale, Tensor shift, Tensor? residual, bool relu) -> ()")
define(f"blocked_batch_norm_backward({_BACKWARD}, bool training, SymInt batch) -> {_GRADIENTS}")
define(f"blocked_group_norm_backward({_BACKWARD}, SymInt batch) -> {_GRADIENTS}")
_OVER_X = "Tensor gy, Tensor(a!) x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, bool relu"
define(f"blocked_batch_norm_backward_({_OVER_X}, bool training, SymInt batch) -> (Tensor dweight, Tensor dbias)")
define(f"blocked_group_norm_backward_({_OVER_X}, SymInt batch) -> (Tensor dweight, Tensor dbias)")


@torch.library.register_fake("fedsparse::blocked_norm")
def _(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    return torch.empty_like(x)


def _fake_gradients(gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias, out = rest[:3]
    masked = x.new_empty(0) if out is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), masked


torch.library.register_fake("fedsparse::blocked_batch_norm_backward", _fake_gradients)
torch.library.register_fake("fedsparse::blocked_group_norm_backward", _fake_gradients)


def _fake_over_x(gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[:2]
    return torch.empty_like(weight), torch.empty_like(bias)


torch.library.register_fake("fedsparse::blocked_batch_norm_backward_", _fake_over_x)
torch.library.register_fake("fedsparse::blocked_group_norm_backward_", _fake_over_x)


def reference_norm(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """blocked_norm by torch's own ops."""
    channels = (1, -1, 1, 1, 1)
    y = x * scale.view(channels) + shift.view(channels) + (0 if residual is None else residual)
    return y.relu() if relu else y


class How(NamedTuple):
    """What is constant in a call of a norm; settings: what its backward op takes last."""

    relu: bool
    settings: tuple[Any, ...]
    kept: Kept | None


class BatchNorm(torch.autograd.Function):
    """Given statistics, of x itself (training) or not."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        statistics: Statistics,
        how: How,
    ) -> Tensor:
        """Arguments as in `batch_norm`."""
        ctx.relu, ctx.settings, ctx.kept = how
        mean, rstd, scale, shift = statistics
        y = torch.ops.fedsparse.blocked_norm(x, scale, shift, residual, how.relu)
        _save(ctx, x, (weight, bias, mean, rstd), y, residual is not None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        raw = torch.ops.fedsparse
        gradients = _gradients(ctx, gy, raw.blocked_batch_norm_backward, raw.blocked_batch_norm_backward_)
        return *gradients, None, None


class GroupNorm(torch.autograd.Function):
    """Given statistics of x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        how: How,
    ) -> Tensor:
        """Arguments as in `group_norm`."""
        ctx.relu, ctx.settings, ctx.kept = how
        scale, shift = group_factors(weight, bias, mean, rstd, x.shape[1])
        y = torch.ops.fedsparse.blocked_norm(x, scale, shift, residual, how.relu)
        _save(ctx, x, (weight, bias, mean, rstd), y, residual is not None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        raw = torch.ops.fedsparse
        gradients = _gradients(ctx, gy, raw.blocked_group_norm_backward, raw.blocked_group_norm_backward_)
        return *gradients, None, None, None


def _save(ctx: Any, x: Tensor, factors: tuple[Tensor | None, ...], y: Tensor, added: bool) -> None:
    """x, or nothing where `ctx.kept` gives it; and for ReLU's gradient, where x does not tell it, y or bits."""
    if ctx.kept is None:
        ctx.save_for_backward(x, *factors, y if ctx.relu and added else None, None)
        return
    flags = ctx.relu and (added or not ctx.kept.exact)
    ctx.save_for_backward(None, *factors, None, torch.ops.fedsparse.relu_bits(y, math.inf) if flags else None)


def _gradients(ctx: Any, gy: Tensor, backward: Any, backward_over_x: Any) -> tuple[Tensor | None, ...]:
    """Of x, weight, bias and residual; in the place of gy and of x where those are needed no more."""
    x, weight, bias, mean, rstd, y, flags = ctx.saved_tensors
    owned = False
    if x is None:
        x, owned = ctx.kept.take()
        ctx.kept = None if is_last() else ctx.kept
    if flags is not None and only_here(gy):
        torch.ops.fedsparse.relu_gradient_(gy, flags)
    elif flags is not None:
        gy = torch.ops.fedsparse.relu_gradient(gy, flags)
    relu = ctx.relu and flags is None
    weight, bias = _affine(weight, bias, x)
    if owned and y is None:
        dweight, dbias = backward_over_x(gy, x, mean, rstd, weight, bias, relu, *ctx.settings)
        return _wanted(ctx, x, dweight, dbias, gy)
    dx, dweight, dbias, masked = backward(gy, x, mean, rstd, weight, bias, y, relu, *ctx.settings)
    return _wanted(ctx, dx, dweight, dbias, gy if y is None else masked)


def _affine(weight: Tensor | None, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    return (
        x.new_ones(x.shape[1]) if weight is None else weight,
        x.new_zeros(x.shape[1]) if bias is None else bias,
    )


def _wanted(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad))


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
    batch: int,
    *,
    training: bool,
    residual: Tensor | None = None,
    relu: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """relu(z * weight + bias + residual), differentiable in x, weight, bias and residual.

    Shapes: x, residual, y [blocks, C, H, W, L] with `batch` images; weight, bias [C]. With `training`, the statistics
    are those of x, and its gradient runs through them too. `kept` gives x in the backward pass, which then
    does not keep it, nor y: for a ReLU that x does not tell it keeps a bit an element.
    """
    _check_norm("batch_norm", x, batch, residual)
    return BatchNorm.apply(x, weight, bias, residual, statistics, How(relu, (training, batch), kept))


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    batch: int,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """The same with statistics of x by image and group: mean, rstd [blocks, groups, L]."""
    _check_norm("group_norm", x, batch, residual)
    return GroupNorm.apply(x, weight, bias, residual, mean, rstd, How(relu, (batch,), kept))


def _check_norm(op: str, x: Tensor, batch: int, residual: Tensor | None) -> None:
    check_blocked(op, "x", x)
    check_batch(op, x, batch)
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"{op}: residual must have the shape and dtype of x, {tuple(x.shape)} {x.dtype}.")
