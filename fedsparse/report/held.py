"""What the layers of a model hold between steps and until the optimizer's step, by kind: the tensors' own sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from fedsparse.nn import SparseLayer
from fedsparse.report.kept import REST

KINDS = ("weights", "indices", "masks", "optimizer", "gradients")
"""Indices are index arrays and the statistics of norms; masks are held by no layer but by who masks it."""


def held_by_layer(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, int]]:
    """Bytes by layer (`leaves`) and kind; a tensor counts once, for the first, and what no layer holds for `REST`."""
    counted: set[int] = set()
    found = {}
    for name, modules in (*((name, [layer]) for name, layer in leaves(model)), (REST, list(model.modules()))):
        sizes: dict[str, int] = {}
        for tensor, kind in _tensors_of(modules, optimizer):
            if id(tensor) not in counted:
                counted.add(id(tensor))
                sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
        if any(sizes.values()):
            found[name] = sizes
    return found


def _tensors_of(modules: Iterable[nn.Module], optimizer: Optimizer) -> Iterator[tuple[Tensor, str]]:
    for module in modules:
        yield from ((buffer, "indices") for buffer in module._buffers.values() if buffer is not None)
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter, "weights"
                state = optimizer.state.get(parameter, {})
                yield from ((entry, "optimizer") for entry in state.values() if isinstance(entry, Tensor))
                if parameter.grad is not None:
                    yield parameter.grad, "gradients"


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that hold no others, and sparse ones, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLayer) or not any(module.children())
    ]
