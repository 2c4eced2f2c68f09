"""VGG for small images."""

from torch import nn

from .layers import ConvNorm, initialise, scaled

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """The eight convolutions of VGG-11 (Simonyan and Zisserman, ICLR 2015) with norm, one linear classifier.

    2 x 2 max pooling after each of the five stages. 9,228,362 parameters at 3 channels and 10 classes.
    """
    layers: list[nn.Module] = []
    for stage in STAGES:
        for wide in stage:
            layers.append(ConvNorm(channels, scaled(wide, width), norm))
            channels = scaled(wide, width)
        layers.append(nn.MaxPool2d(2))
    classifier = nn.Linear(channels, classes)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    initialise(model, classifier)
    return model
