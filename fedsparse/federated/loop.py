"""The federated loop: sample, send, train, judge, sum, update, evaluate, record.

Every message is encoded to bytes, counted, decoded and judged, in one process too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from fedsparse.federated import checkpoint, faults, mask_change
from fedsparse.federated.admission import admit
from fedsparse.federated.budget import Budget
from fedsparse.federated.checkpoint import Checkpoint, Facts
from fedsparse.federated.client import Client, train
from fedsparse.federated.errors import RunError, StoppedError
from fedsparse.federated.experiment import Experiment, prepared, server_of, worker_of
from fedsparse.federated.meter import Peak, live_bytes, multiply_adds
from fedsparse.federated.method import Method, Sections
from fedsparse.federated.plan import Plan, section_of
from fedsparse.federated.result import Record, mean_of, perplexity, result_of
from fedsparse.federated.seeds import numpy_generator
from fedsparse.federated.server import evaluate
from fedsparse.federated.status import Status, Teller
from fedsparse.federated.total import Total
from fedsparse.federated.validate import UpdateError
from fedsparse.federated.workers import Done, LocalWorkers, RankSum, Tag, Workers
from fedsparse.wire import Bitmap, Spec, encode

SERVER = -1


class Loop:
    """The state of a run and its three steps: open, round, result."""

    def __init__(
        self,
        experiment: Experiment,
        workers: Callable[[Experiment], Workers] | None = None,
        teller: Teller | None = None,
    ) -> None:
        self.experiment = experiment
        self.teller = Teller(None, None) if teller is None else teller
        method = experiment.method
        live_bytes()  # whatever is made from here on is counted
        model = prepared(experiment)
        names = method.prunes(model)
        self.server = server_of(experiment, model, names)
        self.dense_macs = multiply_adds(model, self.server.input_shape, self.server.input_dtype)
        self.text = experiment.train.batch(np.array([0]))[1].dim() > 1
        self.workers = LocalWorkers(worker_of(experiment)) if workers is None else workers(experiment)
        self.updating = Peak()
        self.budget = Budget(experiment)
        self.plans: dict[int, Plan] = {}
        self.records: list[Record] = []
        self.down = self.up = 0
        self.opening: Record = {"bytes_down": 0, "bytes_up": 0, "seconds": 0.0, "peak_bytes": 0, "rejected": []}
        self.opening["accuracy"] = None
        self._trained = False
        self._counted = (-1, 0)  # version of the masks, multiply-adds
        self._rejected: list[Record] = []
        self._dropped: list[Record] = []
        self._asked: list[Done] = []

    def open(self) -> None:
        """Everything before round 0: the first mask, and what the method asks of clients.

        Where weights were trained by then, by the server or a client, `opening` has the accuracy that they reached.
        """
        start = time.perf_counter()
        experiment, method, server = self.experiment, self.experiment.method, self.server
        if experiment.public is not None and len(experiment.public):
            training = replace(experiment.training, epochs=experiment.pretrain_epochs)
            holder = Client(SERVER, 0, experiment.seed, server.model, experiment.train, experiment.public, training)
            train(holder, Method())
            self._trained = True
        method.start(server)
        faults.reach("open", 0)
        method.probe(server, self.ask)
        self.budget.check(server)
        self.opening |= {"bytes_down": self.down, "bytes_up": self.up, "seconds": time.perf_counter() - start}
        self.opening |= {"rejected": _by_client(self._rejected), "dropped": _by_client(self._dropped)}
        self.opening |= {"incidents": [*self.workers.incidents(), *self.budget.overruns(self._asked)]}
        if self._trained:
            self.opening["accuracy"], _ = evaluate(server.model, experiment.test)

    def ask(
        self, task: str, sections: Sections, expect: Mapping[str, Spec], clients: Sequence[int] | None = None
    ) -> Total:
        """Run the method's function `task` on clients (all of them by default) and sum their answers."""
        asked = list(range(len(self.experiment.parts))) if clients is None else list(clients)
        self._trained |= "parameters" in expect
        message = encode(task, 0, SERVER, dict(sections))
        total = Total(self._samples(asked))
        self.workers.send(Tag.TASK, message)
        self.down += len(message) * len(asked)
        for done in self.workers.work(Tag.PERFORM, asked, task):
            assert isinstance(done, Done)
            self.opening["peak_bytes"] = max(self.opening["peak_bytes"], done.peak)
            self._asked.append(done._replace(answer=None))
            self._accept(total, done, task, 0, expect)
        if not total.clients:
            raise RunError(f"no client performed {task}: {(self._rejected + self._dropped)[-1]['reason']}")
        return total

    def round(self, t: int) -> Record:
        """One round; returns its record."""
        start = time.perf_counter()
        before = (self.down, self.up) if t else (0, 0)
        self._rejected, self._dropped, self.server.changed = [], [], 0.0
        self.updating.reset()
        sampled = self._sample(t)
        faults.reach("send", t)
        self._send(t, sampled)
        self.teller.tell(self._status(t, 0, len(sampled)))
        expect = self.experiment.method.expect(self.server, t)
        total = self.experiment.aggregation.total(self._samples(sampled))
        finished: dict[int, Done] = {}
        until = time.monotonic() + self.experiment.failures.round_deadline
        for done in self.workers.work(Tag.TRAIN, sampled, "", t, until):
            if isinstance(done, RankSum):
                total.merge(done.sections)
                continue
            self._accept(total, done, "report", t, expect)
            finished.pop(done.client, None)
            if not done.failed:
                # Kept, the answers of all clients would be in memory together.
                finished[done.client] = done._replace(answer=None)
            self.teller.tell(self._status(t, len(finished) + len(self._dropped), len(sampled)))
        self._count_judged(total, finished.values())
        self._check_quorum(t, len(total.clients), len(sampled))
        faults.reach("update", t)
        with self.updating.measure(self.server.model):
            self.experiment.method.update(self.server, total, t)
        self.workers.kept |= {id: finished[id].keeps for id in total.clients if finished[id].keeps}
        seconds = time.perf_counter() - start
        return self._record(t, total, list(finished.values()), seconds, before)

    def state(self) -> tuple[dict[str, Tensor], Facts]:
        """What a checkpoint holds beside the records: tensors, and facts that JSON holds."""
        facts = {"down": self.down, "up": self.up, "opening": self.opening, "trials": self.budget.trials}
        facts["mask_version"] = self.server.mask_version
        return checkpoint.tensors_of(self.server) | checkpoint.packed(self.workers.kept), facts

    def restore(self, start: Checkpoint, records: list[Record]) -> None:
        """Take the place of `open` and of the rounds that a checkpoint holds."""
        checkpoint.restore(self.server, start.tensors)
        self.workers.kept |= checkpoint.unpacked(start.tensors)
        self.server.mask_version = start.facts["mask_version"]
        self.down, self.up, self.opening = start.facts["down"], start.facts["up"], start.facts["opening"]
        self.records, self.budget.trials = records, start.facts["trials"]
        if mask_change.MASK in self.server.state:
            # The clients have it and are not charged again, but the processes that stand for them are new.
            mask = Bitmap(mask_change.sent_mask(self.server))
            self.workers.send(Tag.MASK, encode("mask", len(records), SERVER, {"mask": mask}))

    def result(self, status: str, total_seconds: float) -> Record:
        """What a run says of itself; every cost in it was measured."""
        server, text = self.server, self.text
        facts = {
            "status": status,
            **dict(zip(("ranks", "lost_ranks"), self.workers.ranks_and_lost(), strict=True)),
            "density": server.density(),
            "parameters": server.parameter_count,
            "macs": self._macs(),
            "dense_macs": self.dense_macs,
            "bytes_down": self.down,
            "bytes_up": self.up,
            "opening": self.opening,
            "closing": {"incidents": self.workers.incidents()},
            "total_seconds": total_seconds,
        }
        return result_of(self.experiment, self.records, facts, text)

    def _sample(self, t: int) -> list[int]:
        count = min(self.experiment.training.clients_per_round, len(self.experiment.parts))
        generator = numpy_generator(self.experiment.seed, "clients", t)
        return sorted(int(i) for i in generator.choice(len(self.experiment.parts), count, replace=False))

    def _send(self, t: int, sampled: Sequence[int]) -> None:
        """The mask, or its change, to whom lacks it, the weights to all; the worker decodes each once."""
        self.plans = self.budget.plans(self.server, sampled)
        weights = encode("weights", t, SERVER, dict(self._weights(t)))
        if self.server.mask_version:
            for mask, receivers in mask_change.messages(self.server, t, sampled):
                self.workers.send(Tag.MASK, mask)
                self.down += len(mask) * len(receivers)
        self.workers.send(Tag.WEIGHTS, weights)
        self.down += len(weights) * len(sampled)

    def _weights(self, t: int) -> Sections:
        return {
            **self.server.sections(t),
            **self.experiment.method.broadcast(self.server, t),
            **({"plans": section_of(self.plans)} if self.plans else {}),
        }

    def _accept(self, total: Total, done: Done, kind: str, t: int, expect: Mapping[str, Spec]) -> None:
        id, report = done.client, done.answer
        if done.failed:
            self._dropped.append({"client": id, "reason": done.error})
        if report is None:
            return
        self.up += len(report)
        bound = self.experiment.aggregation.norm_bound
        try:
            facts, sections = admit(self.server, self.experiment.method, report, kind, t, id, expect, bound)
        except UpdateError as reason:
            self._rejected.append({"client": id, "reason": str(reason)})
            return
        total.losses[id] = facts.loss
        total.add(id, facts.samples, sections)

    def _count_judged(self, total: Total, finished: Iterable[Done]) -> None:
        """Of reports that ranks judged and added: what rank 0 says of its own at once."""
        for client, verdict in sorted((done.client, done.verdict) for done in finished if done.verdict is not None):
            self.up += verdict.nbytes
            if verdict.refused:
                self._rejected.append({"client": client, "reason": verdict.refused})
                continue
            total.losses[client] = verdict.loss
            total.accepted += verdict.samples
            total.clients.append(client)

    def _status(self, t: int, done: int, asked: int) -> Status:
        last = self.records[-1] if self.records else {}
        return {
            "round": t,
            "rounds": self.experiment.training.rounds,
            "clients_done": done,
            "clients": asked,
            "rejected": len(self._rejected),
            "dropped": len(self._dropped),
            "bytes_down": self.down,
            "bytes_up": self.up,
            "accuracy": last.get("accuracy"),
            "peak_bytes": last.get("peak_bytes"),
        }

    def _check_quorum(self, t: int, usable: int, asked: int) -> None:
        needed = max(1, math.ceil(self.experiment.failures.quorum * asked))
        if usable < needed:
            last = (self._rejected + self._dropped)[-1]["reason"]
            sentence = f"round {t} has {usable} usable reports of {asked}, but needs {needed}; the last reason: {last}"
            raise StoppedError(sentence) if self._dropped else RunError(sentence)

    def _macs(self) -> int:
        server = self.server
        if self._counted[0] != server.mask_version:
            self._counted = server.mask_version, multiply_adds(server.model, server.input_shape, server.input_dtype)
        return self._counted[1]

    def _samples(self, clients: Sequence[int]) -> int:
        return sum(self.server.samples[id] for id in clients)

    def _record(self, t: int, total: Total, finished: list[Done], seconds: float, before: tuple[int, int]) -> Record:
        training, server = self.experiment.training, self.server
        accuracy = loss = None
        if (t + 1) % training.eval_every == 0 or t + 1 == training.rounds:
            accuracy, loss = evaluate(server.model, self.experiment.test)
            loss = loss if math.isfinite(loss) else None
        record = {
            "round": t,
            "accuracy": accuracy,
            "loss": loss,
            **({"perplexity": perplexity(loss)} if self.text else {}),
            "train_loss": mean_of([loss for _, loss in sorted(total.losses.items())]),
            "density": server.density(),
            "layer_densities": server.densities(),
            "mask_change": server.changed,
            "seconds": seconds,
            "client_seconds": statistics.median(done.seconds for done in finished),
            "bytes_down": self.down - before[0],
            "bytes_up": self.up - before[1],
            "peak_bytes": max(done.peak for done in finished),
            "adjusts": self.experiment.method.adjusts(t, training.rounds),
            "update_peak_bytes": self.updating.bytes,
            "macs": self._macs(),
            "clients": sorted(total.clients),
            "rejected": _by_client(self._rejected),
            "dropped": _by_client(self._dropped),
            "incidents": [*self.workers.incidents(), *self.budget.overruns(finished)],
            **({"plans": self.budget.records(self.plans, finished)} if self.plans else {}),
        }
        self.records.append(record)
        self.teller.tell(self._status(t + 1, 0, len(finished) + len(self._dropped)), now=t + 1 == training.rounds)
        return record


def _by_client(entries: list[Record]) -> list[Record]:
    """In an order that does not depend on who answered first."""
    return sorted(entries, key=lambda entry: entry["client"])
