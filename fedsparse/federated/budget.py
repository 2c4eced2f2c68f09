"""Memory limits of clients: how each one trains so that its peak stays below its limit, chosen by measuring.

A choice (`Plan`) is a level of the activation store and a number of pieces in which a minibatch goes through the model,
their gradients added up. Before a round the server chooses for every sampled client: the first plan of a fixed order
whose trial stays below `SHARE` of the client's limit. In that order there are as few pieces as possible, and for that
many the fastest level, from that of the run on (one that computes something else, as FedMef's
"pruned", stays). Levels change no bit of the result; pieces add the
gradient up in another order, and batch norm normalises each piece by its own statistics and moves its running ones with
each. Pieces are halved down to 4 samples, without batch norm down to 1. A client's density is never chosen: in every
method here all clients train under masks of the server's size.

A trial is a client's round, on a copy of the server's model and on the first samples of the training set: at most two
minibatches and two epochs, report included, as an ordinary round and as each that `Method.adjustments` names; and one
more of its last minibatch, where that is smaller: layers may run it in another layout, which keeps more. Its peak
is a count of bytes, the same on every machine, and is looked up where one of the same kind was made before. What the
store keeps depends on how many activations are 0, which changes as the model learns: hence `SHARE`.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from fedsparse.federated.errors import BudgetError, RunError
from fedsparse.federated.experiment import Experiment
from fedsparse.federated.plan import Plan, least_piece, levels_from, section_of
from fedsparse.federated.server import Server
from fedsparse.federated.worker import Worker
from fedsparse.federated.workers import Done
from fedsparse.wire import Section, encode

SHARE = 0.9
"""Of a limit, what a trial may take."""
BUCKETS = 16
"""Densities within a factor of 2^(1/16) share a trial."""


@dataclass
class Budget:
    """The trials of a run so far: peak bytes by what was tried. They belong to a checkpoint."""

    experiment: Experiment
    trials: dict[str, int] = field(default_factory=dict)

    def check(self, server: Server) -> None:
        """Before round 0: raise BudgetError where a client's limit cannot be met."""
        try:
            self.plans(server, range(len(self.experiment.parts)))
        except RunError as error:
            raise BudgetError(str(error)) from None

    def plans(self, server: Server, clients: Iterable[int]) -> dict[int, Plan]:
        """The plan of each of the clients; none where there are no limits. RunError where one cannot be met."""
        limits = self.experiment.memory_limits
        return {} if limits is None else {id: self._plan(server, id, limits[id]) for id in clients}

    def records(self, plans: Mapping[int, Plan], work: Iterable[Done]) -> list[dict[str, Any]]:
        """What a round says of its clients' plans: limit, level, pieces and measured peak of each, by client."""
        limits = self.experiment.memory_limits or []
        return [
            {"client": done.client, "limit": limits[done.client], **plans[done.client]._asdict(), "peak": done.peak}
            for done in sorted(work, key=lambda done: done.client)
        ]

    def overruns(self, work: Iterable[Done]) -> list[dict[str, Any]]:
        """An incident for every client that took more than its limit."""
        limits = self.experiment.memory_limits or []
        return [
            {"rank": None, "client": done.client, "reason": f"took {done.peak} bytes of its {limits[done.client]}"}
            for done in sorted(work, key=lambda done: done.client)
            if limits and done.peak > limits[done.client]
        ]

    def _plan(self, server: Server, client: int, limit: int) -> Plan:
        samples, least = self._samples(client), math.inf
        for plan in self._candidates(server.model, max(samples)):
            peak = max(self._peak(server, plan, count) for count in samples)
            if peak <= SHARE * limit:
                return plan
            least = min(least, peak)
        raise RunError(
            f"client {client} may take {limit} bytes (memory_limit), but its rounds need a limit of at least "
            f"{math.ceil(least / SHARE)}, at any batch split and level of the activation store; a lower density or a "
            "smaller model would need less"
        )

    def _samples(self, client: int) -> list[int]:
        """Samples of the client's trials: of one minibatch or two, and of its last where that is smaller."""
        full, rest = divmod(len(self.experiment.parts[client]), self.experiment.training.batch_size)
        whole = [min(2, full) * self.experiment.training.batch_size] if full else []
        return [*whole, rest] if rest > 1 or not full else whole

    def _candidates(self, model: nn.Module, samples: int) -> Iterator[Plan]:
        """Plans in the order in which they are tried."""
        batch = self.experiment.training.batch_size
        least = least_piece(model)
        pieces = first = self.experiment.training.pieces
        while pieces == first or -(-batch // pieces) >= least:
            if pieces == first or -(-batch // pieces) < samples:
                for level in levels_from(self.experiment.training, self.experiment.method):
                    yield Plan(level, pieces)
            pieces *= 2
            if pieces > batch:
                return

    def _peak(self, server: Server, plan: Plan, samples: int) -> int:
        """Peak bytes of a trial, made or looked up."""
        density = server.density()
        bucket = math.ceil(BUCKETS * math.log2(density) - 1e-9) if density > 0 else "none"
        key = f"{plan.level}, {plan.pieces} pieces, {samples} samples, density bucket {bucket}"
        if key not in self.trials:
            rounds = {0, *self.experiment.method.adjustments(self.experiment.training.rounds)}
            self.trials[key] = max(self._try(server, round, plan, samples) for round in sorted(rounds))
        return self.trials[key]

    def _try(self, server: Server, round: int, plan: Plan, samples: int) -> int:
        experiment, method = self.experiment, self.experiment.method
        training = replace(experiment.training, epochs=min(2, experiment.training.epochs))
        model, part = copy.deepcopy(server.model), np.arange(samples)
        worker = Worker(
            model, method, server.names, experiment.train, [part], training, experiment.seed, experiment.wire,
            error_feedback=experiment.error_feedback,
        )  # fmt: skip
        sections: Mapping[str, Section] = {**server.sections(round), **method.broadcast(server, round)}
        worker.receive_weights(encode("weights", round, -1, {**sections, "plans": section_of({0: plan})}))
        gc.collect()
        worker.train(0)
        return worker.peak.bytes
