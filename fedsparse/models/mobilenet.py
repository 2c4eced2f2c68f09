"""MobileNetV2 for small images (Sandler et al., CVPR 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import ConvNorm, conv, depthwise, initialise, norm_layer, scaled

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block; the paper's table 2 with stride 1 in the second stage."""
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise, linear 1 x 1 projection: [b, c, h, w] to [b, out, h / stride, w / stride].

    The input is added where it has the output's shape.
    """

    def __init__(self, channels: int, out: int, expansion: int, stride: int, norm: str) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand = ConvNorm(channels, wide, norm, kernel=1, relu6=True) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(depthwise(wide, stride), norm_layer(norm, wide), nn.ReLU6(inplace=True))
        self.project = nn.Sequential(conv(wide, out, kernel=1), norm_layer(norm, out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobilenetv2(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """MobileNetV2 1.0 with stride 1 in the stem and in the second stage, as is usual at 32 x 32 pixels.

    Seven stages of inverted residuals, then a 1 x 1 convolution of 1280; ReLU6. 2,236,682 parameters at 3 channels
    and 10 classes. Depthwise convolutions are never made sparse.
    """
    wide = scaled(STEM, width)
    layers: list[nn.Module] = [ConvNorm(channels, wide, norm, relu6=True)]
    for expansion, stage, blocks, stride in STAGES:
        for block in range(blocks):
            out = scaled(stage, width)
            layers.append(InvertedResidual(wide, out, expansion, 1 if block else stride, norm))
            wide = out
    last = scaled(LAST, width)
    classifier = nn.Linear(last, classes)
    head = ConvNorm(wide, last, norm, kernel=1, relu6=True)
    model = nn.Sequential(*layers, head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    initialise(model, classifier)
    return model
