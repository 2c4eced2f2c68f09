"""Give the layers of a model their levels: what they keep for the backward pass."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from fedsparse.nn.activation_store import Lean, keep_bits
from fedsparse.nn.level import DENSE, Levels, parse_levels
from fedsparse.nn.nsconv import PrunedConv2d
from fedsparse.nn.walk import pads_zeros


def keep_activations(model: nn.Module, levels: Levels) -> nn.Module:
    """Give every convolution of `model`, in place, the level that `levels` says; "dense" where no pattern fits.

    Where any is not "dense", plain nn.Conv2d that pad with zeros become such that have a level (with the same
    parameters), and ReLU and pooling modules such that keep bits (`activation_store.keep_bits`). Returns the model.

    ValueError for a level that does not exist, or a pattern that fits no convolution.
    """
    parsed = parse_levels(levels)
    less = any(not level.keeps_all for level in parsed.values())
    if less:
        for name, module in list(model.named_modules()):
            if _can_have_one(name, module):
                model.set_submodule(name, PrunedConv2d(module))
        keep_bits(model)
    for module in model.modules():
        if isinstance(module, Lean):
            module.lean = less
    require_patterns(parsed, levelled(model))
    for name, module in model.named_modules():
        if hasattr(module, "level"):
            module.level = next((level for pattern, level in parsed.items() if fnmatchcase(name, pattern)), DENSE)
    return model


def levelled(model: nn.Module) -> list[str]:
    """The names of the layers that have a level, or would be given one."""
    return [name for name, module in model.named_modules() if hasattr(module, "level") or _can_have_one(name, module)]


def _can_have_one(name: str, module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and pads_zeros(module) and bool(name)


def require_patterns(levels: Mapping[str, object], layers: Iterable[str]) -> None:
    """ValueError where a pattern other than "*" fits none of these names."""
    names = list(layers)
    for pattern in levels:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"activations: no layer's name fits {pattern!r}; those with a level are: {', '.join(names) or 'none'}"
            )
