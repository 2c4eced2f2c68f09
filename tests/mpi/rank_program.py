"""What the MPI tests start: toy runs one after the other, each with the fault that its argument orders ("" for none).

Before the fault an argument may have the word "local", for sums on the ranks, and the name of a method of
`tests/federated/kill_program.py`, whose toy run it then is.
Rank 0 prints a JSON line for each: a hash of weights, statistics and masks, the metrics, and who failed how.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from fedsparse.comm.mpi import world_rank, world_size
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Failures, Loop, Training, exchange, faults, mpi_workers, run
from fedsparse.federated.journal import resumable
from fedsparse.federated.loop import Loop as _Loop
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.ranks import run_on_ranks
from fedsparse.federated.scheduling import Pace
from fedsparse.federated.worker import Worker
from fedsparse.federated.workers import Done, Tag
from fedsparse.methods import FedTiny

sys.path.insert(0, str(Path(__file__).parent.parent / "federated"))
import kill_program
from kill_program import METHODS


def experiment(words: Sequence[str] = ()) -> Experiment:
    """The run that an argument's words ask for."""
    found = next((kill_program.experiment(METHODS[word]) for word in words if word in METHODS), None) or toy()
    return replace(found, sums="local" if "local" in words else "server")


def toy() -> Experiment:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    data = Dataset("toy", images, labels, 3, (0.0,), (1.0,))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    method = FedTiny(density=0.4, interval=1, last=4, rate=0.3, blocks=1)
    parts = np.split(np.arange(60), [5, 12, 20, 31, 45])
    failures = Failures(client_deadline=float(os.environ.get("DEADLINE", "120")), server_deadline=250.0)
    works = os.environ.get("SERVER_WORKS") == "1"
    return Experiment(
        model, method, data, data, parts, Training(4, 6, 1, 8), seed=2, failures=failures, server_works=works
    )


def one_run(argument: str, kept: list[_Loop]) -> None:
    *words, fault = argument.split(" ")
    os.environ[faults.VARIABLE] = fault
    faults.planned.cache_clear()
    trial = experiment(words)
    if "slow" in fault:
        trial = replace(
            trial, failures=Failures(round_deadline=float(os.environ.get("ROUND_DEADLINE", "5")), server_deadline=250.0)
        )
    out = Path(os.environ["OUT"]) if "OUT" in os.environ and world_rank() == 0 else None
    begun, own = time.monotonic(), len(done_by_the_server)
    if world_size() > 1:
        result = run_on_ranks(trial, out)
    else:
        result = run(trial, out, start=None if out is None else resumable(out, trial))
    if result is None:
        return
    loop = kept[-1]
    digest = hashlib.sha256()
    for vector in (exchange.parameters(loop.server.model), exchange.buffers(loop.server.model)):
        digest.update(vector.numpy().tobytes())
    digest.update(exchange.mask(loop.server.model).numpy().tobytes())
    records = loop.records
    found = {
        "fault": argument,
        "hash": digest.hexdigest(),
        "metrics": [[r["accuracy"], r["loss"], r["train_loss"], r["bytes_up"], r["bytes_down"]] for r in records],
        "lost": result.get("lost_ranks", []),
        "seconds": time.monotonic() - begun,
        "own": len(done_by_the_server) - own,
    }
    for what in ("rejected", "dropped", "incidents"):
        found[what] = [[r["round"], e.get("client"), e["reason"]] for r in records for e in r[what]]
    entries = [e for part in (result["opening"], *records, result["closing"]) for e in part["incidents"]]
    found["named"] = sorted(e["rank"] for e in entries if e["reason"].startswith("lost"))
    print(json.dumps(found), flush=True)


@contextmanager
def everyone_gets_a_client() -> Iterator[None]:
    """A fault that is ordered has to happen: no rank is left out for being late, or measured to be slow."""
    hand_out, work_too = MPIWorkers._hand_out, MPIWorkers._work_too

    def when_all_are_there(workers: MPIWorkers, *arguments: object) -> None:
        if workers.ready.issuperset(workers.ranks):
            hand_out(workers, *arguments)  # type: ignore[arg-type]

    def when_all_have_one(workers: MPIWorkers) -> bool:
        return workers.orders.keys() >= set(workers.ranks) and work_too(workers)

    with (
        mock.patch.object(Pace, "note"),
        mock.patch.object(MPIWorkers, "_hand_out", when_all_are_there),
        mock.patch.object(MPIWorkers, "_work_too", when_all_have_one),
    ):
        yield


done_by_the_server: list[int] = []


def main() -> None:
    torch.set_num_threads(1)
    kept: list[_Loop] = []
    at_work = mpi_workers.carry_out

    def counted(worker: Worker, kind: Tag, client: int, task: str) -> Done:
        done_by_the_server.append(client)
        return at_work(worker, kind, client, task)

    mpi_workers.carry_out = counted
    original = Loop.__init__

    def keep(self: Loop, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        kept.append(self)

    Loop.__init__ = keep  # type: ignore[method-assign]
    if world_size() > 1:
        # What torch does once in a process takes seconds of CPU; deadlines are to measure the work alone.
        run(replace(experiment(), training=Training(1, 6, 1, 8)))
    for argument in sys.argv[1:]:
        with everyone_gets_a_client() if argument.split(" ")[-1] else nullcontext():
            one_run(argument, kept)


if __name__ == "__main__":
    main()
