"""A worker runs many clients, one after the other, on one model: it decodes, trains, and encodes the report.

The worker sees bytes only, as a process on another machine would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.data import Samples
from fedsparse.federated import exchange, faults, mask_change
from fedsparse.federated.client import Client, Training, train
from fedsparse.federated.cohort import admits, train_together
from fedsparse.federated.meter import Peak
from fedsparse.federated.method import Method, Sections
from fedsparse.federated.plan import plan_for
from fedsparse.federated.recorded import RecordedSteps
from fedsparse.federated.seeds import Draws, derive
from fedsparse.nn import SparseLayer, sparse_layers
from fedsparse.nn.walk import Tensors
from fedsparse.optim import SGD, Adam
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Carrier, Message, Values, decode, encode


@dataclass
class Worker:
    """model: this worker's own copy; names: the layers that masks are made for; parts: samples of each client.

    common: the masks that every client of the round starts from. asked: the sections of the task messages so far, the
    newest of each name: what a device would still hold of them. between: as in `Client`. error_feedback: whether
    clients add to a report what rounding took from the one before; kept, keeps: what clients have from that one, before
    they train, and what they have for the next, after it.
    """

    model: nn.Module
    method: Method
    names: list[str]
    data: Samples
    parts: Sequence[np.ndarray]
    training: Training
    seed: int
    wire: Carrier = "fp32"
    weights: Message | None = None
    common: list[tuple[SparseLayer, Topology]] = field(default_factory=list)
    asked: Message | None = None
    peak: Peak = field(default_factory=Peak)
    between: Callable[[], None] = lambda: None
    error_feedback: bool = False
    kept: Mapping[int, bytes | memoryview] = field(default_factory=dict)
    keeps: dict[int, bytes] = field(default_factory=dict)
    _found: tuple[Tensors, SGD | Adam] | None = None
    _vectors: dict[str, Tensor] = field(default_factory=dict)
    _start: list[Tensor] = field(default_factory=list)
    _recorded: RecordedSteps | None = None

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            self.data = resident(self.data, device, torch.cuda.mem_get_info(device)[0])
            self._recorded = RecordedSteps() if self.training.cuda_graph == "auto" and records(self) else None
        self._start = [counter.clone() for counter in Tensors.of(self.model).counters]

    def receive_mask(self, data: bytes | memoryview) -> None:
        """Take the masks of a `mask` message, or their change."""
        sections = decode(data).sections
        if "base" in sections:
            self.return_to_common_mask()
            sections = {"mask": Bitmap(mask_change.apply(exchange.mask_bits(self.model), sections))}
        exchange.load(self.model, sections, self.names, self.method.granularity, self.training.memory)
        self.common = [(layer, layer.topology) for layer in sparse_layers(self.model).values()]
        self._found = None

    def receive_weights(self, data: bytes | memoryview) -> None:
        """Keep a `weights` message; every client of the round starts from it."""
        self.weights, self.asked = decode(data), None
        self._vectors = exchange.vectors(self.weights.sections)

    def receive_task(self, data: bytes | memoryview) -> None:
        """Keep the message of a task that clients will perform."""
        message = decode(data)
        before = {} if self.asked is None else self.asked.sections
        self.asked = replace(message, sections={**before, **message.sections})

    def train(self, id: int) -> bytes:
        """Run one client's round and return its encoded report; `peak` tells the memory that it took."""

        def act(client: Client) -> bytes:
            faults.reach("train", client.round)
            train(client, self.method)
            return self._report(client)

        return self._work("train", id, 0, act)

    def train_together(self, ids: Sequence[int]) -> list[bytes]:
        """As `train` of each, all at once (see `cohort`)."""
        reports = []
        with self.peak.measure(self._at_start()[0]):
            clients = [self._client(id) for id in ids]
            for client in train_together(clients, self.method):
                faults.reach("train", client.round)
                with self._draws_of("train", client.id):
                    reports.append(self._report(client))
        return reports

    def _report(self, client: Client) -> bytes:
        facts = np.array([client.samples, client.loss], dtype=np.float64)
        sections = {"facts": Values(facts), **self.method.report(client)}
        report = encode("report", client.round, client.id, sections)
        if client.keeps:
            self.keeps[client.id] = client.keeps
        faults.reach("report", client.round)
        return faults.spoil(report, client.round)

    def perform(self, task: str, id: int) -> bytes:
        """Run the method's function `task` on one client, as `Method.probe` asks, and return its encoded answer."""
        message = self.asked
        if message is None:
            raise RuntimeError(f"task {task} was ordered before its message came")

        def act(client: Client) -> bytes:
            self._found = None  # since a task may exchange layers
            sections: Sections = getattr(self.method, task)(client, message.sections)
            facts = np.array([client.samples, client.loss], dtype=np.float64)
            return encode(task, message.round, id, {"facts": Values(facts), **sections})

        return self._work(task, id, message.round, act)

    def _work(self, purpose: str, id: int, round: int, act: Callable[[Client], bytes]) -> bytes:
        """Do it with a client at its start; what it takes is measured, and the optimizer's state is gone after it."""
        tensors, optimizer = self._at_start()
        with self.peak.measure(tensors), self._draws_of(purpose, id):
            try:
                return act(self._client(id, round))
            finally:
                optimizer.state.clear()

    def _draws_of(self, purpose: str, id: int) -> Draws:
        round = 0 if self.weights is None else self.weights.round
        return Draws(derive(self.seed, f"{purpose}/torch", round, id))

    def _client(self, id: int, round: int = 0) -> Client:
        tensors, optimizer = self._at_start()
        # Integer buffers, as the number of batches that a norm has seen, are what they were at the start.
        for counter, start in zip(tensors.counters, self._start, strict=True):
            counter.copy_(start)
        received: Sections = {}
        if self.weights is not None:
            round, received = self.weights.round, self.weights.sections
            exchange.load_vectors(tensors, self._vectors)
        plan = plan_for(id, received)
        training = self.training if plan is None else plan.applied(self.training)
        work = self.data, self.parts[id], training, self.wire, received
        client = Client(id, round, self.seed, self.model, *work, found=tensors, used=optimizer, between=self.between)
        client.recorded = self._recorded
        client.feedback, client.kept = self.error_feedback, self.kept.get(id, b"")
        return client

    def _at_start(self) -> tuple[Tensors, SGD | Adam]:
        """The model's tensors, under the masks that every client starts from, and an optimizer of them."""
        self.return_to_common_mask()
        if self._found is None:
            tensors = Tensors.of(self.model)
            self._found = tensors, self.training.make_optimizer(tensors.parameters, 0)
        return self._found

    def return_to_common_mask(self) -> None:
        """Give the model the masks that every client of the round starts from."""
        for layer, topology in self.common:
            # Topologies share the layer's own arrays, so a mask that no client changed is recognised at once.
            if layer.cols is not topology.cols:
                layer.set_topology(topology)


def records(worker: Worker) -> bool:
    """Whether the steps of a worker's clients may be recorded: plain local training that keeps all activations."""
    levels = worker.training.levels(worker.method)
    return admits(worker.method) and levels == "dense" and worker.training.cohort == 1


def resident(data: Samples, device: torch.device, free: int) -> Samples:
    """The data set on the device where it takes at most a quarter of its free bytes, else where it is."""
    return data.to(device) if 4 * data.nbytes <= free else data
