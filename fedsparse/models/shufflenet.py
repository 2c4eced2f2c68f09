"""ShuffleNet V2 for small images (Ma et al., ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import ConvNorm, depthwise, initialise, norm_layer, scaled

STAGES = ((116, 4), (232, 8), (464, 4))
STEM, LAST = 24, 1024


class Shuffle(nn.Module):
    """Interleave the two halves of the channels: [b, c, h, w] to the same shape, c even."""

    def forward(self, x: Tensor) -> Tensor:
        """Channel i of the first half goes to 2 i, of the second to 2 i + 1."""
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _branch(channels: int, out: int, stride: int, norm: str) -> nn.Sequential:
    """1 x 1 convolution, 3 x 3 depthwise, 1 x 1; a norm after each, ReLU after the 1 x 1s."""
    return nn.Sequential(
        ConvNorm(channels, out, norm, kernel=1),
        depthwise(out, stride),
        norm_layer(norm, out),
        ConvNorm(out, out, norm, kernel=1),
    )


class Unit(nn.Module):
    """Stride 1: half of the channels pass, half go through the branch. [b, c, h, w] to the same shape."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, 1, norm)
        self.shuffle = Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output."""
        kept, changed = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([kept, self.branch(changed)], dim=1))


class DownUnit(nn.Module):
    """Stride 2: both halves of the output come from all of the input. [b, c, h, w] to [b, out, h / 2, w / 2]."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            depthwise(channels, 2), norm_layer(norm, channels), ConvNorm(channels, out // 2, norm, kernel=1)
        )
        self.branch = _branch(channels, out // 2, 2, norm)
        self.shuffle = Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output."""
        return self.shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


def shufflenetv2(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """ShuffleNet V2 1x with a 3 x 3 stem of stride 1 and no max pooling, as is usual at 32 x 32 pixels.

    Stages of 116, 232 and 464 channels, each at half the size of the one before, then a 1 x 1 convolution of 1024.
    1,263,854 parameters at 3 channels and 10 classes. Depthwise convolutions are never made sparse.
    """
    wide = scaled(STEM, width)
    layers: list[nn.Module] = [ConvNorm(channels, wide, norm)]
    for stage, units in STAGES:
        # Two equal halves: an odd number of channels could not be split.
        out = 2 * scaled(stage // 2, width)
        layers += [DownUnit(wide, out, norm), *(Unit(out, norm) for _ in range(units - 1))]
        wide = out
    last = scaled(LAST, width)
    classifier = nn.Linear(last, classes)
    head = ConvNorm(wide, last, norm, kernel=1)
    model = nn.Sequential(*layers, head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    initialise(model, classifier)
    return model
