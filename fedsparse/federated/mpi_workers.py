"""The other ranks of an MPI job as workers: orders, answers, lost and late ranks. Same numbers as in one process."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsparse.comm.mpi import Link, Received
from fedsparse.federated import faults
from fedsparse.federated.errors import StoppedError
from fedsparse.federated.experiment import Failures
from fedsparse.federated.scheduling import Pace
from fedsparse.federated.worker import Worker
from fedsparse.federated.workers import Done, Incident, Tag, carry_out, deliver

log = logging.getLogger("fedsparse")
_ANSWER = struct.Struct("<qqdq")
_GOES_ON = "`fedsparse resume` goes on from its last checkpoint"
_ORDER = struct.Struct("<qqq")


@dataclass
class Order:
    """What a rank is at: a client, since when (monotonic seconds), and whether its answer is still wanted."""

    number: int
    client: int
    task: str
    since: float
    wanted: bool = True


class MPIWorkers:
    """The other ranks of the job; this one serves. Clients are handed out as `scheduling` says, to whoever is idle.

    A rank that is killed, or silent for `failures.client_deadline` seconds over one client, is given up; so is one that
    has not said hello after `startup` seconds. Raises StoppedError when no rank is left.
    """

    def __init__(self, link: Link, samples: Sequence[int], failures: Failures, startup: float = 300.0) -> None:
        self.link, self.samples, self.failures = link, samples, failures
        self.ready: set[int] = set()
        self.ready_by = time.monotonic() + startup
        self.orders: dict[int, Order] = {}
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)
        self.reassured = time.monotonic()
        self._numbers = itertools.count(time.time_ns())
        self._incidents: list[Incident] = []
        self._told: set[int] = set()

    @property
    def ranks(self) -> list[int]:
        """The ranks that still answer."""
        return [rank for rank in range(1, self.link.size) if rank not in self.link.lost]

    def send(self, kind: Tag, data: bytes) -> None:
        """Send to every rank that still answers."""
        for rank in self.ranks:
            self.link.send(rank, kind, data)

    def work(
        self, kind: Tag, clients: Sequence[int], task: str = "", round: int = 0, until: float = math.inf
    ) -> Iterator[Done]:
        """Hand out the clients until all have come back, or have been left out."""
        waiting = sorted(clients, key=lambda id: (self.samples[id], -id))
        while waiting or any(order.wanted for order in self.orders.values()):
            if time.monotonic() > until:
                yield from self._leave_out(waiting)
                return
            yield from self._lost(waiting)
            if not self.ranks:
                raise StoppedError("no worker rank is left: all were killed, or silent beyond the deadline")
            self._hand_out(kind, waiting, task, round)
            self._reassure()
            message = self.link.receive(min(0.5, max(0.0, until - time.monotonic())))
            if message is not None and (done := self._take(message)) is not None:
                yield done

    def incidents(self) -> list[Incident]:
        """What ranks did that they should not, since this was last asked."""
        found, self._incidents = self._incidents, []
        return found

    def ranks_and_lost(self) -> tuple[int, list[int]]:
        """The size of the job, and the ranks that were killed, left, or were given up."""
        return self.link.size, sorted(self.link.lost)

    def close(self, seconds: float = 10.0) -> None:
        """Tell the ranks to stop, and end those that are still at work or do not say goodbye, so that none stays.

        A rank that has left may already say hello to this job's next run, which gets to hear it.
        """
        self.send(Tag.STOP, b"")
        for rank in self.orders:
            self.link.give_up(rank)
        leaving, until = set(self.ranks) & self.ready, time.monotonic() + seconds
        early: list[Received] = []
        while leaving - self.link.lost and time.monotonic() < until:
            message = self.link.receive(until - time.monotonic())
            if message is None:
                continue
            if message.tag == Tag.STOP:
                leaving.discard(message.source)
            elif message.tag == Tag.HELLO and message.source not in leaving:
                early.append(message)
        self.link.put_back(early)
        for rank in leaving - self.link.lost:
            self.link.give_up(rank)
        self.link.flush(seconds)

    def _hand_out(self, kind: Tag, waiting: list[int], task: str, round: int) -> None:
        pace, now = self.paces[task], time.monotonic()
        for rank in self.ranks:
            if rank not in self.ready or rank in self.orders or not waiting:
                continue
            busy = {
                other: order.since + self.paces[order.task].expected(other, self.samples[order.client]) - now
                for other, order in self.orders.items()
            }
            at = pace.choose(rank, [self.samples[id] for id in waiting], busy)
            if at is not None:
                order = Order(next(self._numbers), waiting.pop(at), task, now)
                self.link.send(rank, kind, _ORDER.pack(order.number, order.client, round) + task.encode())
                self.orders[rank] = order

    def _reassure(self) -> None:
        """Several times within their patience, tell ranks that have no client that rank 0 waits too."""
        now = time.monotonic()
        if now < self.reassured + self.failures.patience / 4:
            return
        self.reassured = now
        for rank in self.ranks:
            if rank in self.ready and rank not in self.orders:
                self.link.send(rank, Tag.WAIT, b"")

    def _take(self, message: Received) -> Done | None:
        """What a message from a rank amounts to; None where it answers no order that is still wanted."""
        rank, data = message.source, message.data
        if message.tag == Tag.HELLO:
            self.ready.add(rank)
            self.link.introduce(rank, data)
            return None
        order = self.orders.get(rank)
        readable = len(data) >= _ANSWER.size
        number, client, seconds, peak = _ANSWER.unpack_from(data) if readable else (0, 0, 0.0, 0)
        if order is None or (readable and number != order.number):
            self._report(rank, client if readable else None, "sent an answer that was not asked for, or sent it twice")
            return None
        del self.orders[rank]
        if not order.wanted:
            self._report(
                rank, order.client, f"answered too late, {time.monotonic() - order.since:.1f} s after the order"
            )
            return None
        if not readable or client != order.client:
            return Done(order.client, None, f"rank {rank} sent an answer that cannot be read")
        rest = data[_ANSWER.size :]
        if message.tag != Tag.ANSWER:
            return Done(client, None, bytes(rest).decode(errors="replace"))
        self.paces[order.task].note(rank, self.samples[client], seconds)
        return Done(client, rest, "", seconds, peak)

    def _leave_out(self, waiting: list[int]) -> Iterator[Done]:
        """Give up, for this round, the clients that are not done; ranks at work for them are heard out later."""
        for order in self.orders.values():
            if order.wanted:
                order.wanted = False
                waiting.append(order.client)
        for client in sorted(waiting):
            yield Done(client, None, "not done by the round's deadline")

    def _lost(self, waiting: list[int]) -> Iterator[Done]:
        """Give up silent ranks; the clients of lost ones wait again, or are left out."""
        now, limit = time.monotonic(), self.failures.client_deadline
        for rank in set(self.ranks) - self.ready if now > self.ready_by else ():
            self.link.give_up(rank)
        for rank in [rank for rank, order in self.orders.items() if now > order.since + limit]:
            self.link.give_up(rank)
        for rank in sorted(self.link.lost - self._told):
            self._told.add(rank)
            order = self.orders.pop(rank, None)
            silent = order is not None and now > order.since + limit
            why = f"lost: silent for over {limit:g} s" if silent else "lost: its process ended"
            self._report(rank, None if order is None else order.client, why)
            if order is None or not order.wanted:
                continue
            if self.failures.lost_clients == "leave out":
                yield Done(order.client, None, f"its rank {rank} was lost")
            else:
                bisect.insort(waiting, order.client, key=lambda id: (self.samples[id], -id))

    def _report(self, rank: int, client: int | None, reason: str) -> None:
        self._incidents.append({"rank": rank, "client": client, "reason": reason})
        log.warning("rank %d %s", rank, reason)


def serve(link: Link, worker: Worker, patience: float) -> None:
    """A worker rank's life: take messages from rank 0, carry out orders, until it says stop.

    patience: seconds of silence after which the server counts as gone, so that no rank waits for ever.
    """
    link.send(0, Tag.HELLO, link.identity())
    until = time.monotonic() + patience
    while True:
        message = link.receive(until - time.monotonic())
        if message is None:
            if 0 in link.lost:
                raise StoppedError(f"the server's rank is lost; {_GOES_ON}")
            if time.monotonic() >= until:
                link.abandoned = True
                raise StoppedError(f"the server was silent for {patience:g} seconds; {_GOES_ON}")
            continue
        kind = Tag(message.tag)
        if kind is Tag.STOP:
            link.send(0, Tag.STOP, b"")
            link.flush(10.0)
            return
        if kind in (Tag.TRAIN, Tag.PERFORM):
            answer(link, worker, kind, message.data)
        elif kind is not Tag.WAIT:
            deliver(worker, kind, message.data)
        until = time.monotonic() + patience


def answer(link: Link, worker: Worker, kind: Tag, order: memoryview) -> None:
    """Carry out one order and send what comes of it."""
    number, client, round = _ORDER.unpack_from(order)
    done = carry_out(worker, kind, client, bytes(order[_ORDER.size :]).decode())
    head = _ANSWER.pack(number, client, done.seconds, done.peak)
    tag, rest = (Tag.ERROR, done.error.encode()) if done.answer is None else (Tag.ANSWER, done.answer)
    faults.reach("answer", round)
    for frame in faults.answers(head + rest, round):
        link.send(0, tag, frame)
