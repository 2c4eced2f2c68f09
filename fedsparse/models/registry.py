"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

from torch import nn

from .cnn import cnn, cnn_fedavg
from .mlp import mlp
from .resnet import resnet18, resnet20
from .vgg import vgg11

NORMS = ("batch", "group")


class Family(NamedTuple):
    """A model's maker (classes, channels, image_size, norm, width) and how often it halves the image."""

    make: Callable[[int, int, int, str, float], nn.Module]
    halvings: int


FAMILIES = {
    "cnn": Family(cnn, 2),
    "cnn-fedavg": Family(cnn_fedavg, 2),
    "mlp": Family(mlp, 0),
    "resnet18": Family(resnet18, 3),
    "resnet20": Family(resnet20, 2),
    "vgg11": Family(vgg11, 5),
}


def names() -> list[str]:
    """What `build` takes as a name."""
    return sorted(FAMILIES)


def build(
    name: str,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    norm: str = "batch",
    width: float = 1.0,
) -> nn.Module:
    """A dense model, float32, in training mode, initialised from torch's default generator.

    It maps images [b, channels, image_size, image_size] to logits [b, classes]. Its prunable layers are plain
    `nn.Conv2d` and `nn.Linear`; the last `nn.Linear` is the classifier. With norm "batch" and feature maps
    that shrink to 1 x 1 a training batch needs at least two samples.

    Args:
        name: one of `names()`.
        classes: outputs.
        channels: of the images.
        image_size: side of the images in pixels, at least 2^(times the model halves it).
        norm: "batch" or "group"; models without norm layers (mlp, cnn-fedavg) take both and stay as they are.
        width: multiplies the channels of all hidden layers.

    Raises:
        ValueError: an unknown name or norm, or a number out of range.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(names())}{hint}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    for field, count in (("classes", classes), ("channels", channels)):
        if count < 1:
            raise ValueError(f"{field} must be at least 1, not {count}")
    if not (isfinite(width) and width > 0):
        raise ValueError(f"width must be a finite number above 0, not {width}")
    make, halvings = FAMILIES[name]
    if image_size < 2**halvings:
        raise ValueError(f"model {name!r} needs an image_size of at least {2**halvings} pixels, not {image_size}")
    return make(classes, channels, image_size, norm, width)
