"""The task's loss, for one target a sample and for a sequence of targets alike."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def cross_entropy(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits [..., classes] against int64 targets [...], over all targets at once.

    Images give [b, classes] and [b], text [b, context, classes] and [b, context].
    """
    if target.dim() > 1:
        output, target = output.flatten(0, -2), target.flatten()
    return functional.cross_entropy(output, target, reduction=reduction)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The mean cross-entropy of a sample over batches (x, y), in the model's present mode."""
    total, seen = 0.0, 0
    for x, y in batches:
        total, seen = total + float(cross_entropy(model(x), y)) * len(y), seen + len(y)
    return total / seen
