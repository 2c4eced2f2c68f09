"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

from torch import nn

from .cnn import cnn, cnn_fedavg
from .gpt import gpt, gpt2_32m
from .mlp import mlp
from .mobilenet import mobilenetv2
from .resnet import resnet18, resnet20
from .shufflenet import shufflenetv2
from .vgg import vgg11

NORMS = ("batch", "group")


class Family(NamedTuple):
    """A model of images: its maker (classes, channels, image_size, norm, width), how often it halves the image."""

    make: Callable[[int, int, int, str, float], nn.Module]
    halvings: int


class TextFamily(NamedTuple):
    """A model of text: its maker (classes, context, width)."""

    make: Callable[[int, int, float], nn.Module]


FAMILIES: dict[str, Family | TextFamily] = {
    "cnn": Family(cnn, 2),
    "cnn-fedavg": Family(cnn_fedavg, 2),
    "gpt": TextFamily(gpt),
    "gpt2-32m": TextFamily(gpt2_32m),
    "mlp": Family(mlp, 0),
    "mobilenetv2": Family(mobilenetv2, 3),
    "resnet18": Family(resnet18, 3),
    "resnet20": Family(resnet20, 2),
    "shufflenetv2": Family(shufflenetv2, 3),
    "vgg11": Family(vgg11, 5),
}


def names(text: bool | None = None) -> list[str]:
    """What `build` takes as a name; with `text` only the models of text, or only those of images."""
    return sorted(name for name, family in FAMILIES.items() if text in (None, isinstance(family, TextFamily)))


def build(
    name: str,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    norm: str = "batch",
    width: float = 1.0,
    context: int = 64,
) -> nn.Module:
    """A dense model, float32, in training mode, initialised from torch's default generator.

    A model of images maps [b, channels, image_size, image_size] to logits [b, classes], a model of text tokens int64
    [b, up to context] to logits [b, tokens, classes]. Prunable layers are plain `nn.Conv2d` and `nn.Linear`; the last
    `nn.Linear` is the classifier. With norm "batch" and feature maps that shrink to 1 x 1 a training batch needs at
    least two samples.

    Args:
        name: one of `names()`.
        classes: outputs; for text the size of the vocabulary.
        channels: of the images.
        image_size: side of the images in pixels, at least 2^(times the model halves it).
        norm: "batch" or "group"; models that have neither (mlp, cnn-fedavg, text) take both and stay as they are.
        width: multiplies the channels of all hidden layers, for text the number of heads.
        context: the most tokens of a sample, for text.

    Raises:
        ValueError: an unknown name or norm, or a number out of range.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(names())}{hint}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    for field, count in (("classes", classes), ("channels", channels), ("context", context)):
        if count < 1:
            raise ValueError(f"{field} must be at least 1, not {count}")
    if not (isfinite(width) and width > 0):
        raise ValueError(f"width must be a finite number above 0, not {width}")
    family = FAMILIES[name]
    if isinstance(family, TextFamily):
        return family.make(classes, context, width)
    if image_size < 2**family.halvings:
        smallest = 2**family.halvings
        raise ValueError(f"model {name!r} needs an image_size of at least {smallest} pixels, not {image_size}")
    return family.make(classes, channels, image_size, norm, width)
