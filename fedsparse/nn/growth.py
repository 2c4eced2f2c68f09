"""Look, during an ordinary backward pass, at the gradients of inactive weights: one layer at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedsparse import ops
from fedsparse.nn.layers import SparseLayer


@dataclass(frozen=True)
class Growth:
    """The inactive groups of one layer with the largest |gradient|.

    groups: int64 [a], sorted; a group is (n // V) * row_length + column, the flat weight index where V = 1.
    gradients: float32 [a] where V = 1, else [a, V].
    """

    groups: Tensor
    gradients: Tensor


@contextmanager
def collect_growth(
    layers: Mapping[str, nn.Module], counts: Mapping[str, int], directions: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Growth]]:
    """Within the context, each backward pass fills the yielded dict with `counts[name]` candidates a layer.

    directions: signs of each layer's dense shape. With them only groups that a step down the gradient would move along
    are candidates (see `ops.grow_scores`), and there may be fewer than `counts[name]`.

    The gradient of one layer at a time is looked at, tile by tile (`ops.grow_scores`), while the backward pass stands
    at that layer: a dense gradient of the model never exists. One forward and backward pass at a time; a later one
    overwrites.
    """
    found: dict[str, Growth] = {}

    def keep(name: str, layer: SparseLayer, x: Tensor, g: Tensor) -> None:
        direction = None if directions is None else directions[name]
        scores = ops.grow_scores(x, g, layer.topology, counts[name], **layer.geometry(), direction=direction)
        found[name] = Growth(*scores)

    with _at_each_layer(layers, counts, keep):
        yield found


@contextmanager
def visit_gradients(layers: Mapping[str, nn.Module], callback: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the context, each backward pass calls `callback(name, gradient)` at every layer, from output to input.

    gradient: of the layer's whole weight, inactive places too, in the dense shape; a new tensor that the callback may
    change or keep. It is made while the backward pass stands at that layer, so that no more than one exists at a time
    unless the callback keeps them. A layer that is used twice in a pass is visited twice.
    """

    def hand_over(name: str, layer: SparseLayer, x: Tensor, g: Tensor) -> None:
        if x.dim() == 2:
            callback(name, g.T @ x)
        else:
            callback(name, conv2d_weight(x, layer.weight_shape, g, **layer.geometry()))

    with _at_each_layer(layers, layers, hand_over):
        yield


@contextmanager
def add_gradients(
    model: nn.Module, sums: dict[str, Tensor], change: Callable[[Tensor], Tensor] | None = None
) -> Iterator[None]:
    """Within the context, each backward pass adds every parameter's gradient, or `change(gradient)`, to `sums`.

    A sparse layer's entry is `sums[layer]`, of its whole weight in the dense shape (see `visit_gradients`), the others'
    `sums[parameter]`. An entry that is missing starts at 0. This holds a number for every weight, active or not, as
    PruneFL needs; beside it one layer's gradient at a time.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    values = {id(layer.values) for layer in layers.values()}

    def add(name: str, gradient: Tensor) -> None:
        term = gradient if change is None else change(gradient)
        sums[name] = sums[name].add_(term) if name in sums else term.clone()

    with ExitStack() as stack:
        stack.enter_context(visit_gradients(layers, add))
        for name, parameter in model.named_parameters():
            if id(parameter) not in values and parameter.requires_grad:
                stack.callback(parameter.register_hook(partial(add, name)).remove)
        yield


_Visit = Callable[[str, SparseLayer, Tensor, Tensor], None]


@contextmanager
def _at_each_layer(layers: Mapping[str, nn.Module], names: Iterable[str], visit: _Visit) -> Iterator[None]:
    """Call `visit(name, layer, input, gradient of the output)` in backward passes, linear ones as [B, C] and [B, N]."""

    def remember(name: str, layer: SparseLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept = layer.keep_input(inputs[0])

        def arrived(gradient: Tensor) -> None:
            g, a = gradient.detach(), kept()
            if a.dim() != 4:
                g, a = g.reshape(-1, g.shape[-1]), a.reshape(-1, a.shape[-1])
            with torch.no_grad():
                visit(name, layer, a, g)

        if output.requires_grad:
            output.register_hook(arrived)

    watched: dict[str, SparseLayer] = {}
    for name in names:
        layer = layers.get(name)
        if not isinstance(layer, SparseLayer):
            raise ValueError(f"growth is collected at sparse layers, and {name!r} is none")
        watched[name] = layer
    handles = [layer.register_forward_hook(partial(remember, name)) for name, layer in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
