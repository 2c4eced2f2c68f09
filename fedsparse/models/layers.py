"""What the model families share: norm layers, the conv-norm-ReLU triple, scaled widths, initialisation."""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn

GROUP_CHANNELS = 16


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Batch norm, or group norm with the most groups of at least 16 channels each (Wu and He, ECCV 2018).

    Fewer channels a group would leave single values to normalise where a feature map is 1 x 1.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = max(g for g in range(1, channels + 1) if channels % g == 0 and (g == 1 or channels // g >= GROUP_CHANNELS))
    return nn.GroupNorm(groups, channels)


def scaled(channels: int, width: float) -> int:
    """A layer's channels times the width multiplier, at least 1."""
    return max(1, round(channels * width))


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Convolution padded so that at stride 1 the image keeps its size; odd kernels."""
    return nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=bias)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    """3 x 3 convolution of each channel by itself, without bias; `sparsify` leaves it dense."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class ConvNorm(nn.Sequential):
    """Convolution without bias, norm, ReLU or ReLU6: [b, channels, h, w] to [b, out, h / stride, w / stride]."""

    def __init__(
        self, channels: int, out: int, norm: str, stride: int = 1, kernel: int = 3, relu6: bool = False
    ) -> None:
        super().__init__()
        self.conv = conv(channels, out, kernel, stride)
        self.norm = norm_layer(norm, out)
        # In place is safe: a norm's backward needs its input, not its output.
        self.relu = nn.ReLU6(inplace=True) if relu6 else nn.ReLU(inplace=True)


def initialise(model: nn.Module, classifier: nn.Linear) -> None:
    """He et al. (ICCV 2015): normal weights of variance 2 / fan_in, biases 0, norm layers the identity.

    The classifier, which no ReLU follows, has variance 1 / fan_in. Draws come from torch's default generator
    in the order of the modules.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = 1.0 if module is classifier else 2.0
            nn.init.normal_(module.weight, std=sqrt(gain / fan_in(module.weight)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def fan_in(weight: Tensor) -> int:
    """Inputs of one output: C * kh * kw of a weight (N, C, kh, kw), C of (N, C)."""
    return weight[0].numel()
