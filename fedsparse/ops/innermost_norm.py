"""Batch norm of images that stand innermost in memory, as the Triton convolutions take and give them: `innermost_norm`.

    y = (x - mean) * rstd * weight + bias (+ residual),  rstd = 1 / sqrt(variance + eps)   x [B, C, H, W]
    with a ReLU max(y, 0), which keeps one bit an element: dy counts where y > 0
    dx = weight rstd (dy - mean(dy) - z mean(dy z)),  z = (x - mean) rstd                  in training
    dx = weight rstd dy                                                                    for given statistics
    dweight = sum dy z,  dbias = sum dy

(Ioffe and Szegedy, ICML 2015.) torch's own batch norm would copy such a tensor into another layout, and the next
convolution back. Statistics run in float32 for any x. Once differentiable. Back end: triton.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def stands_innermost(x: Tensor) -> bool:
    """Whether the images of x [B, C, H, W] stand innermost, without gaps, and in no other common layout too."""
    if x.dim() != 4 or x.shape[0] < 2 or x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return False
    return x.permute(1, 2, 3, 0).is_contiguous()


def rows_of(x: Tensor) -> Tensor:
    """[C, H W B] of x, a view where its images stand innermost."""
    return x.permute(1, 2, 3, 0).contiguous().flatten(1)


def images_of(rows: Tensor, like: Tensor) -> Tensor:
    """[B, C, H, W], whose images stand innermost, of rows [C, ...] of a tensor of that shape."""
    batch, channels, high, wide = like.shape
    return rows.view(channels, high, wide, batch).permute(3, 0, 1, 2)


def as_kept(x: Tensor, half: bool) -> Tensor:
    """x for the backward pass: with `half` float32 as bfloat16."""
    return x.detach().bfloat16() if half and x.dtype == torch.float32 else x


class InnermostNorm(torch.autograd.Function):
    """Given or own statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        training: bool,
        relu: bool,
        half: bool,
    ) -> Tensor:
        """Mean and variance float32 [C], of x itself in training; other arguments as in `innermost_norm`."""
        from fedsparse.kernels import norm

        ctx.eps, ctx.training = eps, training
        rows = None if residual is None else rows_of(residual)
        y, bits = norm.batch_norm(rows_of(x), mean, variance, weight, bias, eps, rows, relu)
        ctx.save_for_backward(as_kept(x, half), weight, mean, variance, bits)
        return images_of(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and the residual."""
        from fedsparse.kernels.norm_backward import batch_norm_backward

        x, weight, mean, variance, bits = ctx.saved_tensors
        rows, wanted = (rows_of(gy), rows_of(x)), ctx.needs_input_grad[3]
        dx, dweight, dbias, of_residual = batch_norm_backward(
            *rows, mean, variance, weight, ctx.eps, ctx.training, bits, wanted
        )
        dresidual = None if of_residual is None else images_of(of_residual, x)
        return images_of(dx, x), dweight.to(weight.dtype), dbias.to(weight.dtype), dresidual, *(None,) * 6


def innermost_statistics(
    x: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, training: bool, momentum: float
) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) float32 [C] that batch norm of x [B, C, H, W] takes; no gradients.

    In training those of x, by which the running ones, float32 [C], move (unbiased); else the running ones, copied.
    ValueError where training has one number a channel, or where statistics are given neither way.
    """
    from fedsparse.kernels.moments import batch_moments

    if training:
        if x.numel() <= x.shape[1]:
            raise ValueError(f"innermost_norm: training needs more than one number a channel, not {tuple(x.shape)}.")
        return batch_moments(rows_of(x.detach()), running_mean, running_variance, momentum)
    if running_mean is None or running_variance is None:
        raise ValueError("innermost_norm: without training, running statistics are needed.")
    return running_mean.clone(), running_variance.clone()


def innermost_normed(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    half: bool = False,
) -> Tensor:
    """`innermost_norm` with the statistics of `innermost_statistics`."""
    check_residual("innermost_norm", x, residual)
    weight = mean.new_ones(x.shape[1]) if weight is None else weight
    bias = mean.new_zeros(x.shape[1]) if bias is None else bias
    return InnermostNorm.apply(x, weight, bias, residual, mean, variance, eps, training, relu, half)


def check_residual(op: str, x: Tensor, residual: Tensor | None) -> None:
    """ValueError where it has another shape or dtype than x."""
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"{op}: the residual must be {x.dtype} {tuple(x.shape)}, not {residual.dtype} {tuple(residual.shape)}."
        )


def innermost_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    half: bool = False,
) -> Tensor:
    """F.batch_norm of x [B, C, H, W], plus the residual, and with `relu` max(that, 0), in x's dtype.

    Differentiable in x, weight, bias and the residual, which has x's shape and dtype; running statistics float32 [C]
    move. half: x is kept for the backward pass as bfloat16. ValueError where training has one number a channel, where
    statistics are given neither way, or where the residual has another shape or dtype.
    """
    check_residual("innermost_norm", x, residual)
    statistics = innermost_statistics(x, running_mean, running_variance, training, momentum)
    return innermost_normed(x, *statistics, weight, bias, training, eps, residual, relu, half)
