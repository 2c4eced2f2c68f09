"""torch's norms on Blocked: statistics at once, the rest with what follows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.nn.kept import Source
from fedsparse.nn.region import Blocked, handles
from fedsparse.ops import blocked_norm, blocked_statistics


@handles(F.batch_norm)
def _batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Statistics at once, so that the running ones are right whatever follows; the rest waits."""
    if not isinstance(x, Blocked) or any(t is not None and t.dtype != x.dtype for t in (weight, bias, running_mean)):
        return NotImplemented
    blocks, batch = x.blocks, x.batch
    if training:
        count = x.numel() // x.shape[1] if x.shape[1] else 0
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        running = (running_mean, running_var)
        statistics = blocked_statistics.batch_statistics(blocks, batch, weight, bias, *running, momentum, eps)
    else:
        if running_mean is None or running_var is None:
            return NotImplemented
        rstd = torch.rsqrt(running_var + eps)
        statistics = blocked_statistics.given_statistics(weight, bias, running_mean.clone(), rstd)
    norm = partial(blocked_norm.batch_norm, blocks, weight, bias, statistics, batch, training=training)
    return _waiting(x, norm, lambda: (statistics.scale, statistics.shift))


@handles(F.group_norm)
def _group_norm(
    x: Any, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Any:
    if not isinstance(x, Blocked) or any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        return NotImplemented
    blocks, batch = x.blocks, x.batch
    mean, variance = blocked_statistics.group_moments(blocks, num_groups)
    rstd = torch.rsqrt(variance + eps)
    norm = partial(blocked_norm.group_norm, blocks, weight, bias, mean, rstd, batch)
    return _waiting(x, norm, partial(blocked_statistics.group_factors, weight, bias, mean, rstd, x.shape[1]))


def _waiting(x: Blocked, norm: Callable[..., Tensor], factors: Callable[[], tuple[Tensor, Tensor]]) -> Blocked:
    """The norm of x, to be run with what follows it; `factors` gives (scale, shift) of the same norm."""
    source = norm_input(x)

    def fused(residual: Blocked | None, relu: bool) -> tuple[Tensor, Source | None]:
        added = None if residual is None else residual.blocks
        if source is None:
            return norm(residual=added, relu=relu), None
        y = norm(residual=added, relu=relu, kept=source)
        return y, normed(source, factors, None if residual is None else residual.kept(), relu)

    return Blocked(x.member, x.batch, norm=fused, like=x)


def norm_input(x: Blocked) -> Source | None:
    """How a norm keeps its input by the level of the layer that made it; None: as it is, and nothing is made again."""
    level, source = x.member.level, x.source
    if level.keeps_all or not torch.is_grad_enabled():
        return None
    if source is not None and source.convolutions <= (level.name == "recompute"):
        return source
    if level.halves and x.dtype == torch.float32:
        half = x.blocks.detach().bfloat16()
        return Source(x.blocks, lambda first, end: half[first:end].float(), exact=False)
    return Source.of(x.blocks)


def normed(source: Source, factors: Callable[[], tuple[Tensor, Tensor]], residual: Source | None, relu: bool) -> Source:
    """How to make the output of a norm from its input and the residual."""
    with torch.no_grad():
        scale, shift = factors()

    def make(first: int, end: int) -> Tensor:
        added = None if residual is None else residual.part(first, end)
        line = slice(first, end) if scale.dim() == 3 else slice(None)
        x = source.part(first, end)
        over = x if source.fresh else added if residual is not None and residual.fresh else None
        y = torch.empty_like(x) if over is None else over
        torch.ops.fedsparse.blocked_norm_(y, x, scale[line], shift[line], added, relu)
        return y

    before = (source,) if residual is None else (source, residual)
    return Source(source, make, *before, steps=1)
