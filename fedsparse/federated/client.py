"""One client's round: its data, its seeds, local training. Knows nothing of the server or of transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.data import Samples
from fedsparse.federated.method import Method
from fedsparse.federated.seeds import numpy_generator, torch_generator
from fedsparse.nn import Levels, SparseLayer, keep_activations, parse_levels
from fedsparse.nn.walk import Tensors
from fedsparse.optim import SGD, Adam
from fedsparse.topology import MEMORIES, Memory, Move, Topology
from fedsparse.wire import Carrier, Section

if TYPE_CHECKING:
    from fedsparse.federated.recorded import RecordedSteps


@dataclass(frozen=True)
class Training:
    """How rounds and local training go.

    rounds T; clients_per_round; epochs E; batch_size B; optimizer: local SGD (lr, momentum, weight_decay) or Adam (lr,
    weight_decay), its state fresh each round; lr_decay, lr_schedule: the learning rate of round t is lr * lr_decay^t,
    with "cosine" also times (1 + cos(pi t / T)) / 2; proximal: mu of FedProx (Li et al., MLSys 2020), which adds
    mu / 2 * ||w - w_t||^2 to every client's loss, for any method; eval_every: rounds between evaluations (the last
    round is always evaluated); activations: what layers keep for the backward pass, one level or levels by patterns of
    layers' names (`nn.keep_activations`); None: as the method has it; dense_passes: whether passes run on dense torch
    where that is faster, which unpacks one layer's weight at a time; cohort: how many clients one process trains at
    once (see `cohort`), for methods that leave local training as it is; memory: how sparse layers keep their
    indices, "fast" or "compact" (see `nn.sparsify`), the same bits; pieces P: in so many a full minibatch goes through
    the model, their gradients added up, for less memory (batch norm normalises each by itself); cuda_graph: with
    "auto" a GPU replays recorded steps (see `recorded`) of methods that leave local training as it is.
    """

    rounds: int = 10
    clients_per_round: int = 10
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["sgd", "adam"] = "sgd"
    proximal: float = 0.0
    eval_every: int = 1
    augment: bool = False
    memory: Memory = "fast"
    dense_passes: bool = True
    cohort: int = 1
    pieces: int = 1
    cuda_graph: Literal["off", "auto"] = "off"
    activations: Levels | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "clients_per_round", "epochs", "batch_size", "eval_every", "cohort", "pieces"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")
        words: tuple[tuple[str, tuple[str, ...]], ...] = (
            *(("lr_schedule", ("constant", "cosine")), ("optimizer", ("sgd", "adam"))),
            *(("memory", MEMORIES), ("cuda_graph", ("off", "auto"))),
        )
        for name, choices in words:
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r} but must be one of {', '.join(choices)}")
        if self.pieces > self.batch_size:
            raise ValueError(f"pieces is {self.pieces}, but a minibatch has {self.batch_size} samples (batch_size)")
        if self.pieces > 1 and self.cohort > 1:
            raise ValueError(f"pieces is {self.pieces} and cohort {self.cohort}, but only one of them can be above 1")
        if self.activations is not None:
            parse_levels(self.activations)

    def learning_rate(self, t: int) -> float:
        """The learning rate of round t."""
        cosine = (1 + math.cos(math.pi * t / self.rounds)) / 2 if self.lr_schedule == "cosine" else 1.0
        return self.lr * self.lr_decay**t * cosine

    def levels(self, method: Method) -> Levels:
        """What layers keep for the backward pass: as `activations` says, or where it says nothing, the method."""
        return method.activations if self.activations is None else self.activations

    def make_optimizer(self, parameters: Sequence[nn.Parameter], t: int) -> SGD | Adam:
        """A fresh local optimizer of round t; on a GPU one kernel steps all parameters, in a CUDA graph too."""
        lr, fused = self.learning_rate(t), True if parameters[0].is_cuda else None
        if self.optimizer == "adam":
            capturable = parameters[0].is_cuda
            return Adam(parameters, lr=lr, weight_decay=self.weight_decay, fused=fused, capturable=capturable)
        return SGD(parameters, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused)


@dataclass
class Client:
    """A client while it works: model (the worker's, loaded with the server's weights), data and settings.

    received: sections of the server's message. loss: mean training loss of the last epoch. batch: the minibatch (x, y)
    trained on last. iteration: local iterations done, of `iterations`. memory: tensors that the method keeps until the
    report. tensors, optimizer: of the model, `found` and `used` before or new. contexts: what the method enters in
    `begin` is left when local training ends, however it ends. between: called before each minibatch; a rank that serves
    others attends to them there. recorded: what replays steps, None where none are. feedback: whether the report makes
    up for what rounding took from the one before; kept, keeps: what the client has from then, and for the next (see
    `feedback`).
    """

    id: int
    round: int
    seed: int
    model: nn.Module
    data: Samples
    index: np.ndarray
    training: Training
    wire: Carrier = "fp32"
    received: Mapping[str, Section] = field(default_factory=dict)
    optimizer: SGD | Adam = field(init=False)
    loss: float = float("nan")
    batch: tuple[Tensor, Tensor] | None = None
    iteration: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict, init=False)
    contexts: ExitStack = field(default_factory=ExitStack, init=False)
    found: InitVar[Tensors | None] = None
    used: InitVar[SGD | Adam | None] = None
    tensors: Tensors = field(init=False)
    anchor: dict[nn.Parameter, Tensor] = field(init=False)
    between: Callable[[], None] = lambda: None
    recorded: RecordedSteps | None = None
    feedback: bool = False
    kept: bytes | memoryview = b""
    keeps: bytes = b""
    _starts: dict[nn.Parameter, tuple[Topology, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self, found: Tensors | None, used: SGD | Adam | None) -> None:
        self.tensors = Tensors.of(found or self.model)
        parameters = self.tensors.parameters
        self.optimizer = used or self.training.make_optimizer(parameters, self.round)
        self.optimizer.restart(self.training.learning_rate(self.round))
        self.anchor = {p: p.detach().clone() for p in parameters} if self.training.proximal else {}

    @property
    def samples(self) -> int:
        """n_k."""
        return len(self.index)

    @property
    def iterations(self) -> int:
        """Local iterations of the round: epochs times the batches of `batches`."""
        full, rest = divmod(self.samples, self.training.batch_size)
        return self.training.epochs * (full + (rest > 1 or (rest == 1 and full == 0)))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.tensors.parameters[0].device

    def batches(self, purpose: str, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The client's samples once, shuffled by the seed of (round, client, purpose), in batches of at most B.

        Yields what `data.batch` gives: (x float32 [b, c, h, w], y int64 [b]), or two of int64 [b, context]. A last
        batch of a single sample is left out where there is another, because batch norm cannot train on it; with B = 1
        none is.
        """
        order = numpy_generator(self.seed, purpose, self.round, self.id).permutation(self.index)
        noise = torch_generator(self.seed, f"{purpose}/augment", self.round, self.id) if augment else None
        size, device = self.training.batch_size, self.device
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if len(batch) > 1 or start == 0 or size == 1:
                self.between()
                x, y = self.data.batch(batch, noise)
                yield (x, y) if x.device == device else (x.to(device), y.to(device))

    def pieces(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A minibatch in pieces of at most ceil(B / P) samples, whose sizes differ by one at most."""
        most = -(-self.training.batch_size // self.training.pieces)
        count = -(-y.shape[0] // most)
        return list(zip(x.tensor_split(count), y.tensor_split(count))) if count > 1 else [(x, y)]

    def change_mask(self, layer: SparseLayer, topology: Topology) -> None:
        """Give a layer a new mask while training goes on; optimizer state follows.

        The anchor of a weight is that of the server's model, 0 where that has none, however often it goes and comes.
        """
        parameter, before = layer.values, layer.topology
        move = layer.set_topology(topology)
        self.optimizer.follow(parameter, move)
        if parameter in self.anchor:
            start, values = self._starts.setdefault(parameter, (before, self.anchor[parameter]))
            self.anchor[parameter] = Move(*start.index_map(topology), topology.nnz).apply(values)

    def drop_gradients(self) -> None:
        """Free the gradients of all parameters."""
        for parameter in self.tensors.parameters:
            parameter.grad = None

    def keep_activations(self, method: Method) -> None:
        """Give the model's layers the levels that `training` says, or where it says nothing, `method`."""
        tell_levels(self.model, self.training.levels(method))

    def pull_to_anchor(self) -> None:
        """Add the gradient of the proximal term, mu (w - w_t)."""
        for parameter, start in self.anchor.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.training.proximal)


def tell_levels(model: nn.Module, levels: Levels) -> None:
    """`keep_activations`, but where a worker's model was told the same before: a small model's round is short."""
    if model.__dict__.get("activation_levels", "dense") != levels:
        keep_activations(model, levels)
        model.activation_levels = levels  # type: ignore[assignment]


def iterate(client: Client, method: Method, x: Tensor, y: Tensor) -> tuple[Tensor, float | Tensor]:
    """One local iteration on the minibatch (x, y); the model's output before the step, and the loss.

    On a GPU the loss is a float64 tensor there, so that no step waits for the one before. Of a minibatch in pieces,
    each piece's loss counts by its share of the samples: the gradient is that of their mean.
    """
    client.batch = x, y
    client.drop_gradients()
    outputs: list[Tensor] = []
    total: float | Tensor = 0.0
    size = y.shape[0]
    for inputs, targets in client.pieces(x, y):
        output = client.model(inputs)
        loss = method.loss(client, output, targets)
        share = targets.shape[0] / size
        (loss if share == 1 else loss * share).backward()
        # A graph that is alive remembers the sizes of its leaves, which a mask change changes.
        outputs.append(output.detach())
        total += share * _number(loss)
        del output, loss
    client.pull_to_anchor()
    method.step(client)
    client.iteration += 1
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), total


def _step(client: Client, method: Method, x: Tensor, y: Tensor) -> float | Tensor:
    if client.recorded is not None:
        return client.recorded.step(client, method, x, y)
    return iterate(client, method, x, y)[1]


def _number(loss: Tensor) -> float | Tensor:
    return loss.detach().double() if loss.is_cuda else loss.item()


def train(client: Client, method: Method) -> None:
    """E local epochs of SGD under the method's hooks; sets `client.loss`."""
    client.tensors.train()
    with client.contexts:
        client.keep_activations(method)
        method.begin(client)
        if client.recorded is not None:
            client.recorded.begin(client)
        for epoch in range(client.training.epochs):
            losses: float | Tensor = 0.0
            seen = 0
            for x, y in client.batches(f"epoch {epoch}", client.training.augment):
                loss, size = _step(client, method, x, y), y.shape[0]
                losses, seen = losses + loss * size, seen + size
            client.loss = float(losses / seen)
            method.epoch_end(client, epoch)
    client.drop_gradients()
