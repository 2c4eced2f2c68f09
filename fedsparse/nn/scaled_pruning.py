"""NSConv for a whole model, which bears activations pruned for the backward pass: which modules become which."""

import torch
from torch import nn

from fedsparse.nn.nsconv import NSConv2d, PrunedConv2d
from fedsparse.nn.walk import pads_zeros


def standardise(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Change a dense model, in place, so that it trains with its activations pruned; return it.

    A convolution whose output goes to a BatchNorm2d and nowhere else becomes an NSConv2d with `gain`, its bias the
    norm's shift; the norm is gone. Other convolutions become such that have a level (`keep_activations`) while they are
    dense, too. Convolutions that pad other than with a number of zeros stay, as do other norm layers.

    Raises ValueError where the model has batch norm, and the flow of data between modules cannot be followed.
    """
    for conv, norm in conv_norm_pairs(model).items():
        layer, after = model.get_submodule(conv), model.get_submodule(norm)
        assert isinstance(layer, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        shift = after.bias if after.bias is not None else layer.weight.new_zeros(layer.out_channels)
        model.set_submodule(conv, NSConv2d(layer, shift, gain))
        model.set_submodule(norm, nn.Identity())
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d and pads_zeros(module):
            model.set_submodule(name, PrunedConv2d(module))
    return model


def conv_norm_pairs(model: nn.Module) -> dict[str, str]:
    """Names of the convolutions whose output goes to a BatchNorm2d and nowhere else, and of that norm."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return {}
    try:
        nodes = list(torch.fx.Tracer().trace(model).nodes)
    except Exception as error:
        raise ValueError(
            f"the convolutions that batch norm follows cannot be found in {type(model).__name__}: "
            f"torch.fx cannot trace it ({error}); use a model without batch norm"
        ) from error
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = {}
    for node in nodes:
        if node.op != "call_module" or type(model.get_submodule(node.target)) is not nn.BatchNorm2d:
            continue
        source = node.args[0]
        if source.op == "call_module" and len(source.users) == 1 and calls.count(source.target) == 1:
            conv = model.get_submodule(source.target)
            if type(conv) is nn.Conv2d and pads_zeros(conv) and calls.count(node.target) == 1:
                pairs[source.target] = node.target
    return pairs
