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
from fedsparse.nn import SparseLayer


@dataclass
class LayerCost:
    """kept: bytes that the forward pass left alive; forward, backward: seconds."""

    kept: int = 0
    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Moment:
    """Seconds since the step began; bytes of tensors alive then, and the most since the moment before."""

    seconds: float
    live: int
    peak: int


REST = "(rest)"
"""What runs in no layer: the loss, functions that a model's `forward` calls itself."""


@dataclass
class StepRecorder:
    """Watches one step of `iterate`, which is given the recorder as its method, no gradient being there yet.

    layers: by name, in the order of their first call; what is kept between two layers counts for the later one, and
    what is freed there too, so that the figures add up to `kept`. Backward functions are known by torch's sequence
    numbers as those of the layer whose forward pass made them. marks: seconds at which the backward pass and the
    optimizer began. kept: bytes that the forward pass left alive for the backward pass; gradients: bytes of them
    before the optimizer's step.
    """

    method: Method
    counter: Counter
    layers: dict[str, LayerCost] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    gradients: int = 0
    _spans: list[tuple[int, int, str]] = field(default_factory=list)
    _begun: list[tuple[float, int]] = field(default_factory=list)
    _running: tuple[LayerCost, float] | None = None
    _start: float = 0.0
    _before: int = 0
    _last: int = 0

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
        self._last = self._before
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
        now = self.counter.live()
        self.layers.setdefault(REST, LayerCost()).kept += now - self._last
        self.kept = now - self._before
        self._watch_backward(loss)
        self.marks["backward"] = self._note()
        return loss

    def step(self, client: Client) -> None:
        """The method's step, watched."""
        parameters = (p for group in client.optimizer.param_groups for p in group["params"])
        self.gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
        self.marks["optimizer"] = self._end_backward()
        self.method.step(client)

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
            live = self.counter.live()
            cost.kept += live - self._last
            self._last = live
            self._spans.append((first, _get_sequence_nr(), name))
            self._note()

        return hook

    def _watch_backward(self, loss: Tensor) -> None:
        seen: set[Node] = set()
        waiting = [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            if "AccumulateGrad" not in node.name():
                self._watch(node, self._owner(node._sequence_nr()))

    def _owner(self, number: int) -> str:
        return next((name for first, end, name in self._spans if first <= number < end), REST)

    def _watch(self, node: Node, name: str) -> None:
        """A backward function's time ends where the next one begins.

        A hook behind it would have the engine hold its gradient, which it then could not overwrite.
        """

        def before(_: object) -> None:
            self._end_backward()
            self._running = self.layers[name], self.counter.now()

        node.register_prehook(before)

    def _end_backward(self) -> float:
        now = self._note()
        if self._running is not None:
            cost, begun = self._running
            cost.backward += self.counter.now() - begun
            self._running = None
        return now


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that hold no others, and sparse ones, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLayer) or not any(module.children())
    ]
