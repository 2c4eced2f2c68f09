"""Residual networks for small images (He et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNorm, conv, initialise, norm_layer, scaled

Shortcut = Callable[[int, int, int, str], nn.Module]
"""From (channels, out, stride, norm) to the module beside a block's two convolutions."""


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, missing channels zero; no parameters.

    [b, c, h, w] to [b, out, ceil(h / stride), ceil(w / stride)], out >= c.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.missing = out - channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """The subsampled and padded input."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


def pad_shortcut(channels: int, out: int, stride: int, norm: str) -> nn.Module:
    """Option A of the paper."""
    return PadShortcut(channels, out, stride)


def projection(channels: int, out: int, stride: int, norm: str) -> nn.Module:
    """Option B of the paper: 1 x 1 convolution and norm."""
    return nn.Sequential(conv(channels, out, kernel=1, stride=stride), norm_layer(norm, out))


class BasicBlock(nn.Module):
    """ReLU(shortcut(x) + norm(conv(ReLU(norm(conv(x)))))): [b, c, h, w] to [b, out, h/stride, w/stride]."""

    def __init__(self, channels: int, out: int, stride: int, norm: str, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv(channels, out, stride=stride)
        self.norm1 = norm_layer(norm, out)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv(out, out)
        self.norm2 = norm_layer(norm, out)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else shortcut(channels, out, stride, norm)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


def _resnet(
    stem: int, stages: Sequence[int], blocks: int, shortcut: Shortcut, classes: int, channels: int, norm: str
) -> nn.Module:
    layers: list[nn.Module] = [ConvNorm(channels, stem, norm)]
    wide = stem
    for number, out in enumerate(stages):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            layers.append(BasicBlock(wide, out, stride, norm, shortcut))
            wide = out
    classifier = nn.Linear(wide, classes)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    initialise(model, classifier)
    return model


def resnet18(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """ResNet-18 for CIFAR: 3 x 3 stem, stages of 64, 128, 256 and 512 channels, two basic blocks each.

    Option-B shortcuts. 11,173,962 parameters at 3 channels and 10 classes.
    """
    stages = [scaled(c, width) for c in (64, 128, 256, 512)]
    return _resnet(stages[0], stages, 2, projection, classes, channels, norm)


def resnet20(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """The CIFAR ResNet-20 of the paper's section 4.2: stages of 16, 32 and 64 channels, three blocks each.

    Option-A shortcuts, as there. 269,722 parameters at 3 channels and 10 classes.
    """
    stages = [scaled(c, width) for c in (16, 32, 64)]
    return _resnet(stages[0], stages, 3, pad_shortcut, classes, channels, norm)
