"""Statistics of blocked tensors that norms stand on: batch norm's by channel, group norm's by image and group.

mean and biased variance over the true images, in two passes, sums of planes in float64; see `blocked_norm`. No
gradients: those of a norm run through its statistics. CPU only (C++, float32 and float64).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.blocked import check_batch, check_blocked
from fedsparse.ops.load import define

define(
    "blocked_batch_statistics(Tensor x, SymInt batch, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_variance, float momentum, float eps) -> (Tensor mean, Tensor rstd, Tensor scale, Tensor shift)"
)
define("blocked_group_moments(Tensor x, int groups) -> (Tensor mean, Tensor variance)")


@torch.library.register_fake("fedsparse::blocked_batch_statistics")
def _(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1]) for _ in range(4))


@torch.library.register_fake("fedsparse::blocked_group_moments")
def _(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], groups, x.shape[4])
    return x.new_empty(shape), x.new_empty(shape)


class Statistics(NamedTuple):
    """What batch norm is given, each [C]: mean, rstd, and y = x scale + shift, which follow with weight and bias."""

    mean: Tensor
    rstd: Tensor
    scale: Tensor
    shift: Tensor


def batch_factors(weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [C], of y = x scale + shift."""
    scale = rstd if weight is None else weight * rstd
    return scale, -mean * scale if bias is None else bias - mean * scale


def group_factors(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [blocks, C, L], of y = x scale + shift."""
    width = channels // mean.shape[1]
    scale = rstd.repeat_interleave(width, 1)
    shift = -mean.repeat_interleave(width, 1)
    scale = scale if weight is None else scale * weight[:, None]
    return scale, shift * scale if bias is None else bias[:, None] + shift * scale


@torch.no_grad()
def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(mean, biased variance), each [blocks, groups, L], of x [blocks, C, H, W, L]; no gradients."""
    check_blocked("group_moments", "x", x)
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"group_moments: groups must divide the {x.shape[1]} channels, not {groups}.")
    return torch.ops.fedsparse.blocked_group_moments(x, groups)


def batch_statistics(
    x: Tensor,
    batch: int,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    momentum: float,
    eps: float,
) -> Statistics:
    """The statistics of the true images of x [blocks, C, H, W, L]; moves the running ones, in place; no gradients.

    running = (1 - momentum) running + momentum new, with the unbiased variance, as torch's batch norm has it.
    """
    check_blocked("batch_statistics", "x", x)
    check_batch("batch_statistics", x, batch)
    running = (running_mean, running_variance)
    affine = (None if tensor is None else tensor.detach() for tensor in (weight, bias))
    return Statistics(
        *torch.ops.fedsparse.blocked_batch_statistics(x.detach(), batch, *affine, *running, momentum, eps)
    )


def given_statistics(weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> Statistics:
    """The statistics of batch norm that stands on others than those of x."""
    with torch.no_grad():
        return Statistics(mean, rstd, *batch_factors(weight, bias, mean, rstd))
