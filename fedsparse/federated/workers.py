"""Who carries out the clients' work: this process, or the other ranks of an MPI job. Same numbers either way."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from fedsparse.comm.mpi import Link
from fedsparse.federated.errors import RunError
from fedsparse.federated.worker import Worker

log = logging.getLogger("fedsparse")


@dataclass(frozen=True)
class Done:
    """One client's work: its encoded answer, or the sentence that says why there is none.

    seconds: wall time on the worker. peak: the worker's peak bytes.
    """

    client: int
    answer: bytes | None
    error: str = ""
    seconds: float = 0.0
    peak: int = 0


class Workers(Protocol):
    """Send to all workers, then have clients' work done by any of them, in any order."""

    def send(self, kind: Tag, data: bytes) -> None:
        """Deliver a mask, weights or task message to every worker."""

    def work(self, kind: Tag, clients: Sequence[int], task: str = "") -> Iterator[Done]:
        """Train (or perform the task) for each client once; every client comes back exactly once."""

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


class LocalWorkers:
    """The one worker of this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def send(self, kind: Tag, data: bytes) -> None:
        """Hand the message to the worker."""
        deliver(self.worker, kind, data)

    def work(self, kind: Tag, clients: Sequence[int], task: str = "") -> Iterator[Done]:
        """One client after the other."""
        for client in clients:
            yield carry_out(self.worker, kind, client, task)

    def close(self) -> None:
        """Nothing to let go."""


def deliver(worker: Worker, kind: Tag, data: bytes) -> None:
    """Give a worker a mask, weights or task message."""
    {Tag.MASK: worker.receive_mask, Tag.WEIGHTS: worker.receive_weights, Tag.TASK: worker.receive_task}[kind](data)


def carry_out(worker: Worker, kind: Tag, client: int, task: str) -> Done:
    """Do one client's work; what a client raises is its own failure, not the run's."""
    worker.peak.reset()
    start = time.perf_counter()
    try:
        answer = worker.train(client) if kind is Tag.TRAIN else worker.perform(task, client)
    except Exception as error:
        log.info("client %d failed", client, exc_info=True)
        return Done(client, None, f"{type(error).__name__}: {error}".splitlines()[0])
    return Done(client, answer, seconds=time.perf_counter() - start, peak=worker.peak.bytes)


_ANSWER = struct.Struct("<qdq")
_ORDER = struct.Struct("<q")


class MPIWorkers:
    """The other ranks of the job; this one serves. The largest client goes first, each idle rank gets the next.

    deadline: seconds that a rank may take for one client; startup: seconds until it must have said hello. A rank that
    is killed, or later than that, is given up and its client handed to another rank. Raises RunError when no rank
    is left.
    """

    def __init__(self, link: Link, samples: Sequence[int], deadline: float, startup: float = 300.0) -> None:
        self.link, self.samples, self.deadline = link, samples, deadline
        self.ready: set[int] = set()
        self.ready_by = time.monotonic() + startup

    @property
    def ranks(self) -> list[int]:
        """The ranks that still answer."""
        return [rank for rank in range(1, self.link.size) if rank not in self.link.lost]

    def send(self, kind: Tag, data: bytes) -> None:
        """Send to every rank that still answers."""
        for rank in self.ranks:
            self.link.send(rank, kind, data)

    def work(self, kind: Tag, clients: Sequence[int], task: str = "") -> Iterator[Done]:
        """Hand out clients by size, largest first, to whichever rank is idle."""
        waiting = sorted(clients, key=lambda id: (self.samples[id], -id))
        busy: dict[int, tuple[int, float]] = {}
        while waiting or busy:
            self._take_back(waiting, busy)
            for rank in self.ranks:
                if waiting and rank in self.ready and rank not in busy:
                    client = waiting.pop()
                    self.link.send(rank, kind, _ORDER.pack(client) + task.encode())
                    busy[rank] = client, time.monotonic() + self.deadline
            if not self.ranks:
                raise RunError("no worker rank is left: all were killed, or silent beyond the deadline")
            message = self.link.receive(0.5)
            if message is None:
                continue
            if message.tag == Tag.HELLO:
                self.ready.add(message.source)
                self.link.introduce(message.source, message.data)
            elif message.source in busy:
                client, _ = busy.pop(message.source)
                yield self._done(client, message.tag, message.data)

    def close(self) -> None:
        """Tell the ranks to stop, and whether some were lost."""
        self.send(Tag.STOP, b"lost" if self.link.lost else b"")
        self.link.flush(10.0)

    def _take_back(self, waiting: list[int], busy: dict[int, tuple[int, float]]) -> None:
        if time.monotonic() > self.ready_by:
            for rank in set(self.ranks) - self.ready:
                self.link.give_up(rank)
        for rank, (client, late) in list(busy.items()):
            if time.monotonic() > late:
                self.link.give_up(rank)
            if rank in self.link.lost:
                del busy[rank]
                waiting.append(client)

    @staticmethod
    def _done(client: int, tag: int, data: bytes) -> Done:
        id, seconds, peak = _ANSWER.unpack_from(data)
        if id != client:
            return Done(client, None, f"the worker answered for client {id}")
        rest = data[_ANSWER.size :]
        return Done(id, rest, "", seconds, peak) if tag == Tag.ANSWER else Done(id, None, rest.decode(errors="replace"))


def serve(link: Link, worker: Worker, patience: float) -> bool:
    """A worker rank's life: take messages from rank 0, carry out orders, until it says stop.

    patience: seconds of silence after which the server counts as gone, so that no rank waits for ever. Returns whether
    ranks were lost, so that MPI cannot be finalized.
    """
    link.send(0, Tag.HELLO, link.identity())
    until = time.monotonic() + patience
    while True:
        message = link.receive(until - time.monotonic())
        if message is None:
            if 0 in link.lost:
                raise RuntimeError("the server's rank is lost")
            if time.monotonic() >= until:
                raise RuntimeError(f"the server was silent for {patience:g} seconds")
            continue
        until = time.monotonic() + patience
        kind = Tag(message.tag)
        if kind is Tag.STOP:
            link.flush(10.0)
            return bool(message.data)
        if kind in (Tag.MASK, Tag.WEIGHTS, Tag.TASK):
            deliver(worker, kind, message.data)
            continue
        (client,) = _ORDER.unpack_from(message.data)
        done = carry_out(worker, kind, client, message.data[_ORDER.size :].decode())
        head = _ANSWER.pack(client, done.seconds, done.peak)
        if done.answer is None:
            link.send(0, Tag.ERROR, head + done.error.encode())
        else:
            link.send(0, Tag.ANSWER, head + done.answer)
