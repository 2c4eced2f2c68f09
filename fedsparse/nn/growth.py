"""Look, during an ordinary backward pass, at the gradients of inactive weights: one layer at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedsparse import ops
from fedsparse.nn.layers import SparseLinear
from fedsparse.nn.region import Blocked, as_tensor
from fedsparse.nn.sparse_layer import SparseLayer


@dataclass(frozen=True)
class Growth:
    """The inactive groups of one layer with the largest |gradient|.

    groups: int64 [a], sorted; a group is (n // V) * row_length + column, the flat weight index where V = 1.
    gradients: float32 [a] where V = 1, else [a, V].
    """

    groups: Tensor
    gradients: Tensor

    def without(self, excluded: Tensor, count: int) -> "Growth":
        """The `count` largest that are not among the groups `excluded`; ties to the lower group."""
        left = torch.isin(self.groups, excluded, invert=True).nonzero().flatten()
        size = self.gradients[left].abs().reshape(len(left), -1).sum(1)
        chosen = left[ops.topk(size, min(count, len(left)))]
        return Growth(self.groups[chosen], self.gradients[chosen])


def growth_search(layer: SparseLayer, count: int, direction: Tensor | None = None) -> ops.GrowSearch:
    """What finds the `count` candidates of a layer where its gradient comes some rows at a time."""
    return ops.GrowSearch(layer.topology, count, direction)


@contextmanager
def collect_growth(
    layers: Mapping[str, nn.Module], counts: Mapping[str, int], directions: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Growth]]:
    """Within the context, each backward pass fills the yielded dict with `counts[name]` candidates a layer.

    directions: signs of each layer's dense shape. With them only groups that a step down the gradient would move along
    are candidates (see `ops.grow_scores`), and there may be fewer than `counts[name]`.

    The gradient of one layer at a time is looked at, tile by tile (`ops.grow_scores`), while the backward pass stands
    at that layer: a dense gradient of the model never exists. A layer that is used several times in a pass has the sum
    of the gradients of its uses. One forward and backward pass at a time; a later one overwrites.
    """
    found: dict[str, Growth] = {}

    def keep(name: str, layer: SparseLayer, uses: list[Use]) -> None:
        direction = None if directions is None else directions[name]
        blocked = all(use.batch for use in uses)
        x, g = zip(*((use.x, use.g) if blocked else use.tensors() for use in uses))
        batches = [use.batch or 0 for use in uses] if blocked else None
        scores = ops.grow_scores(
            x, g, layer.topology, counts[name], **layer.geometry(), direction=direction, batches=batches
        )
        found[name] = Growth(*scores)

    with _at_each_layer(layers, counts, keep):
        yield found


@contextmanager
def visit_gradients(
    layers: Mapping[str, nn.Module],
    callback: Callable[[str, Tensor], None],
    rows: Mapping[str, slice] | None = None,
) -> Iterator[None]:
    """Within the context, each backward pass calls `callback(name, gradient)` at every layer, from output to input.

    gradient: of the layer's whole weight, inactive places too, in the dense shape; a new tensor that the callback may
    change or keep. With `rows` only of these rows of each layer (its output channels), [rows, ...]. It is made while
    the backward pass stands at that layer, so that no more than one exists at a time unless the callback keeps them. A
    layer that is used several times in a pass is visited once, with the sum.
    """

    def hand_over(name: str, layer: SparseLayer, uses: list[Use]) -> None:
        which = slice(0, layer.weight_shape[0]) if rows is None else rows[name]
        gradient = _dense_gradient(layer, *uses[0].tensors(), which)
        for use in uses[1:]:
            gradient += _dense_gradient(layer, *use.tensors(), which)
        callback(name, gradient)

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


def _dense_gradient(layer: SparseLayer, x: Tensor, g: Tensor, rows: slice) -> Tensor:
    """Some rows of the gradient; of a convolution by tiles, since torch's scratch is several times what it computes."""
    if x.dim() == 2:
        return g[:, rows].T @ x
    shape = layer.weight_shape[1:]
    found = g.new_empty(rows.stop - rows.start, *shape)
    for tile in ops.tiles(rows, math.prod(shape)):
        part = g[:, tile].contiguous()
        found[tile.start - rows.start : tile.stop - rows.start] = conv2d_weight(
            x, (part.shape[1], *shape), part, **layer.geometry()
        )
    return found


class Use(NamedTuple):
    """The input of one use of a layer in a pass and the gradient of its output, linear ones as [B, C] and [B, N].

    batch: of blocked tensors (see `nn.region`) the number of images, of ordinary ones None.
    """

    x: Tensor
    g: Tensor
    batch: int | None = None

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The two as ordinary tensors."""
        if self.batch is None:
            return self.x, self.g
        return ops.from_blocked(self.x, self.batch), ops.from_blocked(self.g, self.batch)


_Visit = Callable[[str, SparseLayer, list[Use]], None]


@dataclass
class _Watch:
    """The uses of one layer in the present pass: how many there were, and those whose gradient has come."""

    name: str
    layer: SparseLayer
    visit: _Visit
    uses: int = 0
    arrived: list[Use] = field(default_factory=list)

    def used(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Hook of the forward pass."""
        if not output.requires_grad:
            return
        if self.arrived:
            self.finish()
        self.uses += 1
        kept = self.layer.keep_input(inputs[0])
        if isinstance(output, Blocked):
            # A hook that held the output would keep the whole graph alive until the next garbage collection.
            batch = output.batch
            output.blocks.register_hook(lambda gradient: self.reached_blocks(kept(), gradient.detach(), batch))
        else:
            output.register_hook(lambda gradient: self.reached(as_tensor(kept()), gradient.detach()))

    def reached_blocks(self, x: Blocked | Tensor, g: Tensor, batch: int) -> None:
        """Hook of the backward pass where the output is blocked."""
        self._arrive(Use(x.blocks if isinstance(x, Blocked) else ops.to_blocked(x), g, batch))

    def reached(self, x: Tensor, g: Tensor) -> None:
        """Hook of the backward pass."""
        if x.dim() != 4 or isinstance(self.layer, SparseLinear):
            g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        self._arrive(Use(x, g))

    def _arrive(self, use: Use) -> None:
        """With the gradient of the last use the layer is visited."""
        self.arrived.append(use)
        if len(self.arrived) == self.uses:
            self.finish()

    def finish(self) -> None:
        """Visit the layer with the gradients that came; a use that the loss does not depend on has none."""
        uses, self.arrived, self.uses = self.arrived, [], 0
        if uses:
            with torch.no_grad():
                self.visit(self.name, self.layer, uses)


@contextmanager
def _at_each_layer(layers: Mapping[str, nn.Module], names: Iterable[str], visit: _Visit) -> Iterator[None]:
    """Call `visit(name, layer, uses)` in backward passes, when the last gradient of the layer has come."""
    watches = []
    for name in names:
        layer = layers.get(name)
        if not isinstance(layer, SparseLayer):
            raise ValueError(f"growth is collected at sparse layers, and {name!r} is none")
        watches.append(_Watch(name, layer, visit))
    handles = [watch.layer.register_forward_hook(watch.used) for watch in watches]
    try:
        yield
        for watch in watches:
            watch.finish()
    finally:
        for handle in handles:
            handle.remove()
