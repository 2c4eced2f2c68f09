"""Whoever is asked first and whoever answers first, the bits are the same."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kill_program import METHODS, experiment

from fedsparse.federated import Client, Experiment, run
from fedsparse.federated.experiment import worker_of
from fedsparse.federated.robust import Aggregation, Rule
from fedsparse.federated.workers import Done, LocalWorkers, Tag
from fedsparse.methods import FedAvg

MEASURED = ("seconds", "client_seconds", "peak_bytes")


class Shuffled(LocalWorkers):
    """Two workers in one process: clients are handed out in one random order and answer in another."""

    def __init__(self, trial: Experiment, seed: int) -> None:
        super().__init__(worker_of(trial))
        self.others = LocalWorkers(worker_of(trial))
        self.random = np.random.default_rng(seed)
        self.orders: list[list[int]] = []

    def send(self, kind: Tag, data: bytes) -> None:
        super().send(kind, data)
        self.others.kept = self.kept
        self.others.send(kind, data)

    def work(
        self, kind: Tag, clients: Sequence[int], task: str = "", round: int = 0, until: float = math.inf
    ) -> Iterator[Done]:
        done = []
        for client in self.random.permutation(clients):
            worker = super() if self.random.integers(2) else self.others
            done += list(worker.work(kind, [int(client)], task, round, until))
        answers = [done[at] for at in self.random.permutation(len(done))]
        self.orders.append([answer.client for answer in answers])
        yield from answers


class Failing(FedAvg):
    """Clients 0 and 2 fail in round 1."""

    def begin(self, client: Client) -> None:
        if client.round == 1 and client.id != 1:
            raise RuntimeError("the sensor is broken")


def judged_by(rule: Rule) -> Experiment:
    return replace(experiment(METHODS["feddst"]), aggregation=Aggregation(rule, trim=0.34, attackers=0))


def outcome(trial: Experiment, out: Path, workers: Shuffled | None = None) -> tuple[str, list[dict]]:
    """A hash of weights, statistics, masks and the server's state, and every record but for what is measured."""
    out.mkdir()
    run(trial, out, workers=None if workers is None else lambda _: workers)
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in record.items() if key not in MEASURED} for record in records]
    return hashlib.sha256((out / "checkpoints" / "000003.safetensors").read_bytes()).hexdigest(), kept


TRIALS = {
    **{name: partial(experiment, method) for name, method in METHODS.items()},
    **{rule: partial(judged_by, rule) for rule in ("median", "trimmed", "krum")},
    "failing": partial(experiment, Failing()),
    "feedback": lambda: replace(experiment(METHODS["feddst"]), wire="int8", error_feedback=True),
}


@pytest.mark.parametrize("name", TRIALS)
def test_neither_the_order_of_hand_out_nor_of_answers_changes_a_bit(name: str, tmp_path: Path) -> None:
    trial = TRIALS[name]()
    expected = outcome(trial, tmp_path / "in order")
    orders = []
    for seed in range(4):
        workers = Shuffled(trial, seed)
        assert outcome(trial, tmp_path / str(seed), workers) == expected, seed
        orders += workers.orders
    assert len({tuple(order) for order in orders if len(order) == 3}) > 3, "of the 6 orders of 3 clients"
