"""Group norm of images that stand innermost in memory: `innermost_group_norm`, the twin of `innermost_norm`.

    y = (x - mean) * rstd * weight + bias (+ residual),  rstd = 1 / sqrt(variance + eps)   x [B, C, H, W]
    with a ReLU max(y, 0), which keeps one bit an element: m = dy where y > 0, else m = dy
    dx = rstd (m weight - mean(m weight) - z mean(m weight z)),  z = (x - mean) rstd
    dweight = sum m z,  dbias = sum m,  dresidual = m

with statistics, and the means of dx, over the pixels and channels of an image's group (Wu and He, ECCV 2018). They run
in float32 for any x. Once differentiable. Back end: triton.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsparse.ops.innermost_norm import as_kept, check_residual, images_of, rows_of


def _planes(x: Tensor) -> Tensor:
    """[C, H W, B] of x, a view where its images stand innermost."""
    return rows_of(x).unflatten(1, (-1, x.shape[0]))


class InnermostGroupNorm(torch.autograd.Function):
    """Statistics of x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        groups: int,
        eps: float,
        relu: bool,
        half: bool,
    ) -> Tensor:
        """Arguments as in `innermost_group_norm`."""
        from fedsparse.kernels import group_norm

        ctx.groups, ctx.eps = groups, eps
        planes = _planes(x)
        mean, variance = group_norm.group_moments(planes, groups)
        added = None if residual is None else _planes(residual)
        y, bits = group_norm.group_norm(planes, mean, variance, weight, bias, groups, eps, added, relu)
        ctx.save_for_backward(as_kept(x, half), weight, mean, variance, bits)
        return images_of(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and the residual."""
        from fedsparse.kernels.group_norm_backward import group_norm_backward

        x, weight, mean, variance, bits = ctx.saved_tensors
        dx, dweight, dbias, of_residual = group_norm_backward(
            _planes(gy), _planes(x), mean, variance, weight, ctx.groups, ctx.eps, bits, ctx.needs_input_grad[3]
        )
        dresidual = None if of_residual is None else images_of(of_residual, x)
        return images_of(dx, x), dweight.to(weight.dtype), dbias.to(weight.dtype), dresidual, *(None,) * 4


def innermost_group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    half: bool = False,
) -> Tensor:
    """F.group_norm of x [B, C, H, W], plus the residual, and with `relu` max(that, 0), in x's dtype.

    Differentiable in x, weight [C], bias [C] and the residual, which has x's shape and dtype. half: x is kept
    for the backward pass as bfloat16. ValueError where groups does not divide C, where a group has no more than one
    number, or where the residual has another shape or dtype.
    """
    check_residual("innermost_group_norm", x, residual)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"innermost_group_norm: groups must divide the {channels} channels, not {groups}.")
    if x[0].numel() <= groups:
        raise ValueError(f"innermost_group_norm: a group needs more than one number, x has shape {tuple(x.shape)}.")
    weight = torch.ones(channels, device=x.device) if weight is None else weight
    bias = torch.zeros(channels, device=x.device) if bias is None else bias
    return InnermostGroupNorm.apply(x, weight, bias, residual, groups, eps, relu, half)
