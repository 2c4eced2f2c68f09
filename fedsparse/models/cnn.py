"""Small convolutional networks."""

from torch import nn

from .layers import ConvNorm, conv, initialise, scaled


def cnn(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """Three 3 x 3 convolutions of 32, 64 and 128 channels with norm and ReLU, one linear layer.

    2 x 2 max pooling follows the first two, average pooling to at most 4 x 4 the last. 113,386 parameters at
    1 channel, 10 classes and 16 x 16 pixels or more.
    """
    first, second, third = (scaled(c, width) for c in (32, 64, 128))
    side = min(4, image_size // 4)
    classifier = nn.Linear(third * side * side, classes)
    model = nn.Sequential(
        ConvNorm(channels, first, norm),
        nn.MaxPool2d(2),
        ConvNorm(first, second, norm),
        nn.MaxPool2d(2),
        ConvNorm(second, third, norm),
        nn.AdaptiveAvgPool2d(side),
        nn.Flatten(),
        classifier,
    )
    initialise(model, classifier)
    return model


def cnn_fedavg(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """The MNIST CNN of McMahan et al. (AISTATS 2017): 1,663,370 parameters at 28 x 28 x 1 and 10 classes.

    Two padded 5 x 5 convolutions of 32 and 64 channels with 2 x 2 max pooling, then a hidden layer of 512.
    It has no norm layers, so that `norm` changes nothing.
    """
    first, second, hidden = (scaled(c, width) for c in (32, 64, 512))
    side = image_size // 4
    classifier = nn.Linear(hidden, classes)
    model = nn.Sequential(
        conv(channels, first, kernel=5, bias=True),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        conv(first, second, kernel=5, bias=True),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * side * side, hidden),
        nn.ReLU(inplace=True),
        classifier,
    )
    initialise(model, classifier)
    return model
