"""The task's loss, for one target a sample and for a sequence of targets alike."""

from torch import Tensor
from torch.nn import functional


def cross_entropy(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits [..., classes] against int64 targets [...], over all targets at once.

    Images give [b, classes] and [b], text [b, context, classes] and [b, context].
    """
    return functional.cross_entropy(output.flatten(0, -2), target.flatten(), reduction=reduction)
