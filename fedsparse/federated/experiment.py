"""What one run is: a model, a method, the clients' data, and how they train."""

from __future__ import annotations

import copy
import gc
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from fedsparse.data import Samples
from fedsparse.federated.client import Training
from fedsparse.federated.feedback import check_feedback
from fedsparse.federated.meter import live_bytes
from fedsparse.federated.method import Method
from fedsparse.federated.plan import check_pieces
from fedsparse.federated.robust import Aggregation
from fedsparse.federated.server import Server
from fedsparse.federated.worker import Worker
from fedsparse.nn import sparse_layers
from fedsparse.wire import Carrier


@dataclass(frozen=True)
class Failures:
    """What a run bears.

    client_deadline: seconds that an MPI rank may take for one client before the rank is given up. round_deadline:
    seconds after which a round goes on without the clients that are not done. quorum: the share of a round's clients
    whose reports must be usable; at least one always. lost_clients: whether those of a lost rank go to another one.
    server_deadline: seconds of silence after which a worker rank counts rank 0 as lost; by default 20
    minutes, or twice client_deadline where that is more. While rank 0 waits for clients it is not silent, so that what
    it does alone must fit: pretraining, a method's update, the evaluation, a checkpoint.
    """

    client_deadline: float = 600.0
    round_deadline: float = math.inf
    quorum: float = 0.0
    lost_clients: Literal["hand over", "leave out"] = "hand over"
    server_deadline: float | None = None

    def __post_init__(self) -> None:
        deadlines = (self.client_deadline, self.round_deadline, self.patience)
        if not (min(deadlines) > 0 and 0 <= self.quorum <= 1):
            raise ValueError(f"{self} has a deadline that is not positive, or a quorum outside 0 to 1")

    @property
    def patience(self) -> float:
        """Seconds for which a worker rank bears rank 0's silence: `server_deadline` or its default."""
        return max(1200.0, 2 * self.client_deadline) if self.server_deadline is None else self.server_deadline


@dataclass(frozen=True)
class Checkpoints:
    """every: rounds from one checkpoint to the next, 0 for none; keep: how many of them stay."""

    every: int = 1
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise ValueError(f"every is {self.every} and keep {self.keep}, but must be at least 0 and 1")


@dataclass(frozen=True)
class Experiment:
    """One run: a dense model, a method, clients' data, and how they train.

    model: freshly initialised and dense; it is not changed. parts: int64 sample indices into `train`, an array a
    client. wire: how parameters travel both ways. public: samples that the server holds and pretrains the model on
    for `pretrain_epochs` before the first mask, as FedTiny's paper does. labels: entries for the result (the names
    of model and dataset). aggregation: how the reports of a round become one. memory_limits: bytes that each client may
    take in a round, by client; how it trains is chosen so that it takes less (see `budget`). server_works: whether rank
    0 of an MPI job trains clients too (None: where there is room for it, see `federated.ranks`); it decides no number.
    sums: whether the reports of an MPI job are judged and added on rank 0, or each rank adds those of its own clients
    and sends one sum a round (see `local_sums`); the same bits. error_feedback: whether clients add to a report what
    rounding took from the one before (see `feedback`).
    """

    model: nn.Module
    method: Method
    train: Samples
    test: Samples
    parts: Sequence[np.ndarray]
    training: Training = field(default_factory=Training)
    seed: int = 0
    wire: Carrier = "fp32"
    public: np.ndarray | None = None
    pretrain_epochs: int = 1
    name: str = "run"
    labels: Mapping[str, str] = field(default_factory=dict)
    aggregation: Aggregation = field(default_factory=Aggregation)
    failures: Failures = field(default_factory=Failures)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    memory_limits: Sequence[int] | None = None
    server_works: bool | None = None
    sums: Literal["server", "local"] = "server"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        check_sums(self.sums, self.aggregation, self.failures)
        check_feedback(self.error_feedback, self.wire)
        check_pieces(self.training, self.method, self.model)
        if self.memory_limits is not None and len(self.memory_limits) != len(self.parts):
            raise ValueError(f"there are {len(self.memory_limits)} memory limits for {len(self.parts)} clients")
        if self.memory_limits is not None and self.training.cohort > 1:
            raise ValueError(f"clients have memory limits, but training.cohort is {self.training.cohort}")


def check_sums(sums: str, aggregation: Aggregation, failures: Failures) -> None:
    """Refuse (ValueError) local sums where single reports, or rank 0's own weights, are needed."""
    if sums == "server":
        return
    if aggregation.rule != "mean":
        raise ValueError(f"ranks.sums is 'local', but aggregation.rule {aggregation.rule!r} needs single reports")
    if aggregation.norm_bound is not None:
        raise ValueError("ranks.sums is 'local', but aggregation.norm_bound compares reports with rank 0's weights")
    if math.isfinite(failures.round_deadline):
        raise ValueError("ranks.sums is 'local', but a rank at work beyond failures.round_deadline cannot send its sum")


def server_of(experiment: Experiment, model: nn.Module, names: list[str]) -> Server:
    """The server's state at its start; `names` of the layers of `model` that masks are made for."""
    sample, _ = experiment.train.batch(np.array([0]))
    return Server(
        model,
        experiment.seed,
        names,
        experiment.method.granularity,
        tuple(sample.shape[1:]),
        [len(part) for part in experiment.parts],
        input_dtype=sample.dtype,
        training=experiment.training,
        wire=experiment.wire,
    )


def prepared(experiment: Experiment) -> nn.Module:
    """A copy of the model as the method prepares it, layers that are sparse already with the training's `memory`."""
    model = experiment.method.prepare(copy.deepcopy(experiment.model))
    for layer in sparse_layers(model).values():
        if layer.memory != experiment.training.memory:
            layer.set_memory(experiment.training.memory)
    return model


def worker_of(experiment: Experiment) -> Worker:
    """A worker of the experiment with a model of its own: what each MPI rank but the server's makes."""
    _import_what_optimizers_import()
    method = experiment.method
    live_bytes()  # whatever is made from here on is counted
    model = prepared(experiment)
    return Worker(
        model,
        method,
        method.prunes(model),
        experiment.train,
        experiment.parts,
        experiment.training,
        experiment.seed,
        experiment.wire,
        error_feedback=experiment.error_feedback,
    )


def _import_what_optimizers_import() -> None:
    """Import torch._dynamo before anything is measured, as the first optimizer of a process would amid a client's work.

    The import leaves a cycle (in torch.fx) that holds its frames and by them every frame below, and so the tensors of
    the whole stack, until some collection of garbage: peak bytes would depend on when that happens.
    """
    if "torch._dynamo" not in sys.modules:
        importlib.import_module("torch._dynamo")
        gc.collect()
