"""One training step, watched: what each layer takes and keeps, and how many bytes are alive at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr
from torch.autograd.graph import Node

from fedsparse.federated.client import Client
from fedsparse.federated.meter import Counter
from fedsparse.federated.method import Method
from fedsparse.report.held import held_by_layer, leaves
from fedsparse.report.kept import OTHER, REST, functions_of, kept_by_kind


@dataclass
class LayerCost:
    """Bytes by kind: held (see `held`) and kept for the backward pass (see `kept`); forward, backward: seconds."""

    held: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Moment:
    """Seconds since the step began; bytes of tensors alive then, and the most since the moment before."""

    seconds: float
    live: int
    peak: int


@dataclass
class StepRecorder:
    """Watches one step of `iterate`, which is given the recorder as its method, no gradient being there yet.

    layers: by name, in the order of their first call. Backward functions are known by torch's sequence numbers as those
    of the layer whose forward pass made them, and what they keep is that layer's. marks: seconds at which the backward
    pass and the optimizer began. kept: bytes that the forward pass (of a minibatch in pieces: of the first) left alive,
    by the allocator; what of them no backward function keeps is `REST`'s, as `OTHER`.
    """

    method: Method
    counter: Counter
    layers: dict[str, LayerCost] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    _spans: list[tuple[int, int, str]] = field(default_factory=list)
    _begun: list[tuple[float, int]] = field(default_factory=list)
    _running: tuple[LayerCost, float] | None = None
    _start: float = 0.0
    _before: int = 0

    def __getattr__(self, name: str) -> Any:
        """Whatever else the method has."""
        return getattr(self.method, name)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the step made within the context."""
        handles = []
        for name, layer in leaves(model):
            handles.append(layer.register_forward_pre_hook(self._enter))
            handles.append(layer.register_forward_hook(self._leave(name)))
        self.counter.reset()
        self._start, self._before = self.counter.now(), self.counter.live()
        self._note()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._note()

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        """The method's loss; the backward pass follows."""
        loss = self.method.loss(client, output, target)
        functions = functions_of(loss)
        if "backward" not in self.marks:
            self._count_kept(client, functions)
        for node in functions:
            self._watch(node, self._owner(node))
        now = self._note()
        self.marks.setdefault("backward", now)
        return loss

    def step(self, client: Client) -> None:
        """The method's step, watched."""
        for name, kinds in held_by_layer(client.model, client.optimizer).items():
            self.layers.setdefault(name, LayerCost()).held = kinds
        self.marks["optimizer"] = self._end_backward()
        self.method.step(client)

    def _count_kept(self, client: Client, functions: list[Node]) -> None:
        self.kept = self.counter.live() - self._before
        before = [*client.tensors.parameters, *client.tensors.buffers, *(client.batch or ())]
        found = kept_by_kind(functions, self._owner, before)
        rest = self.kept - sum(sum(kinds.values()) for kinds in found.values())
        found.setdefault(REST, {})[OTHER] = rest
        for name, kinds in found.items():
            self.layers.setdefault(name, LayerCost()).kept = kinds

    def _note(self) -> float:
        now = self.counter.now() - self._start
        self.moments.append(Moment(now, self.counter.live(), self.counter.peak()))
        self.counter.reset()
        return now

    def _enter(self, *_: object) -> None:
        self._note()
        self._begun.append((self.counter.now(), _get_sequence_nr()))

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            begun, first = self._begun.pop()
            cost = self.layers.setdefault(name, LayerCost())
            cost.forward += self.counter.now() - begun
            self._spans.append((first, _get_sequence_nr(), name))
            self._note()

        return hook

    def _owner(self, node: Node) -> str:
        number = node._sequence_nr()
        return next((name for first, end, name in self._spans if first <= number < end), REST)

    def _watch(self, node: Node, name: str) -> None:
        """A backward function's time ends where the next one begins.

        A hook behind it would have the engine hold its gradient, which it then could not overwrite.
        """

        def before(_: object) -> None:
            self._end_backward()
            self._running = self.layers.setdefault(name, LayerCost()), self.counter.now()

        node.register_prehook(before)

    def _end_backward(self) -> float:
        now = self._note()
        if self._running is not None:
            cost, begun = self._running
            cost.backward += self.counter.now() - begun
            self._running = None
        return now
