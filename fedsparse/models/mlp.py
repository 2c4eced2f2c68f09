"""Multilayer perceptron."""

from torch import nn

from .layers import initialise, scaled

HIDDEN = (200, 200)


def mlp(classes: int, channels: int, image_size: int, norm: str, width: float) -> nn.Module:
    """Two hidden ReLU layers of 200 units: the "2NN" of McMahan et al. (AISTATS 2017).

    199,210 parameters at 28 x 28 x 1 and 10 classes. It has no norm layers, so that `norm` changes nothing.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    units = channels * image_size * image_size
    for hidden in HIDDEN:
        layers += [nn.Linear(units, scaled(hidden, width)), nn.ReLU(inplace=True)]
        units = scaled(hidden, width)
    classifier = nn.Linear(units, classes)
    model = nn.Sequential(*layers, classifier)
    initialise(model, classifier)
    return model
