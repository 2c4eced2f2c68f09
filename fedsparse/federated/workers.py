"""Who carries out the clients' work: what the loop asks of them, and this process (`mpi_workers`: other ranks)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from fedsparse.federated.local_sums import Verdict
from fedsparse.federated.method import Sections
from fedsparse.federated.worker import Worker

Incident = dict[str, Any]
"""rank, client (None where it had none), reason."""
log = logging.getLogger("fedsparse")


class Done(NamedTuple):
    """One client's work: its encoded answer, or the sentence that says why there is none.

    seconds: wall time on the worker. peak: the worker's peak bytes. verdict: in place of an answer, where the rank
    sums itself. keeps: what the client has for its next round (see `feedback`), if its report counts.
    """

    client: int
    answer: bytes | memoryview | None
    error: str = ""
    seconds: float = 0.0
    peak: int = 0
    verdict: Verdict | None = None
    keeps: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether the client gave neither answer nor verdict."""
        return self.answer is None and self.verdict is None


class RankSum(NamedTuple):
    """What a rank added up of its own clients (`Total.sections`)."""

    sections: Sections


class Workers(Protocol):
    """Send to all workers, then have clients' work done by any of them, in any order.

    kept: what each client has from its last round, for whoever trains it next; the loop fills it.
    """

    kept: dict[int, bytes]

    def send(self, kind: Tag, data: bytes) -> None:
        """Deliver a mask, weights or task message to every worker."""

    def work(
        self, kind: Tag, clients: Sequence[int], task: str = "", round: int = 0, until: float = math.inf
    ) -> Iterator[Done | RankSum]:
        """Train (or perform the task) for each client; every client comes back once.

        Where ranks sum up themselves (training only), clients whose verdicts came come back again, and then count as
        this says, if their rank is lost with its sum. until: the monotonic second after which no answer is used any
        more.
        """

    def incidents(self) -> list[Incident]:
        """What befell workers since this was last asked."""

    def ranks_and_lost(self) -> tuple[int, list[int]]:
        """How many ranks the job was started with, the server's included, and which of them were lost."""

    def close(self) -> None:
        """Let the workers go."""


class Tag(IntEnum):
    """What a message between server and worker is."""

    MASK = 1
    WEIGHTS = 2
    TASK = 3
    TRAIN = 4
    PERFORM = 5
    ANSWER = 6
    ERROR = 7
    HELLO = 8
    STOP = 9
    WAIT = 10
    VERDICT = 11
    SUM = 12


class LocalWorkers:
    """The one worker of this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.kept: dict[int, bytes] = {}

    def send(self, kind: Tag, data: bytes) -> None:
        """Hand the message to the worker."""
        deliver(self.worker, kind, data)

    def work(
        self, kind: Tag, clients: Sequence[int], task: str = "", round: int = 0, until: float = math.inf
    ) -> Iterator[Done]:
        """One cohort of clients after the other; what is done too late is not used."""
        size = self.worker.training.cohort if kind is Tag.TRAIN else 1
        self.worker.kept = self.kept
        for start in range(0, len(clients), size):
            some = clients[start : start + size]
            late = time.monotonic() > until
            done = [] if late else carry_out_together(self.worker, kind, some, task)
            if late or time.monotonic() > until:
                done = [Done(client, None, "not done by the round's deadline") for client in some]
            yield from done

    def incidents(self) -> list[Incident]:
        """None: where the only worker fails, the run does."""
        return []

    def ranks_and_lost(self) -> tuple[int, list[int]]:
        """This one."""
        return 1, []

    def close(self) -> None:
        """Nothing to let go."""


def deliver(worker: Worker, kind: Tag, data: bytes | memoryview) -> None:
    """Give a worker a mask, weights or task message."""
    {Tag.MASK: worker.receive_mask, Tag.WEIGHTS: worker.receive_weights, Tag.TASK: worker.receive_task}[kind](data)


def carry_out_together(worker: Worker, kind: Tag, clients: Sequence[int], task: str) -> list[Done]:
    """Train several clients at once; where that fails, one after the other, so that only who fails alone is lost."""
    if len(clients) > 1:
        worker.peak.reset()
        start = time.perf_counter()
        try:
            answers = worker.train_together(clients)
        except (Exception, SystemExit):
            log.warning("clients %s failed together and now work one after the other", clients, exc_info=True)
        else:
            seconds, peak = (time.perf_counter() - start) / len(clients), worker.peak.bytes
            done = zip(clients, answers, strict=True)
            return [Done(id, answer, "", seconds, peak, keeps=worker.keeps.pop(id, b"")) for id, answer in done]
    return [carry_out(worker, kind, client, task) for client in clients]


def carry_out(worker: Worker, kind: Tag, client: int, task: str) -> Done:
    """Do one client's work; what a client raises, or that it calls `sys.exit`, is its own failure, not the run's."""
    worker.peak.reset()
    start = time.perf_counter()
    try:
        answer = worker.train(client) if kind is Tag.TRAIN else worker.perform(task, client)
    except (Exception, SystemExit) as error:
        log.info("client %d failed", client, exc_info=True)
        return Done(client, None, f"{type(error).__name__}: {error}".splitlines()[0])
    seconds, keeps = time.perf_counter() - start, worker.keeps.pop(client, b"")
    return Done(client, answer, seconds=seconds, peak=worker.peak.bytes, keeps=keeps)
