"""The other ranks of an MPI job as workers: orders, answers, lost and late ranks. Same numbers as in one process."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from fedsparse.comm.mpi import Link, Received
from fedsparse.federated.errors import StoppedError
from fedsparse.federated.experiment import Failures
from fedsparse.federated.jobs import NOBODY, Job, Order
from fedsparse.federated.local_sums import Verdict, sum_of
from fedsparse.federated.scheduling import Pace
from fedsparse.federated.worker import Worker
from fedsparse.federated.worker_rank import ANSWER, ORDER
from fedsparse.federated.workers import Done, Incident, RankSum, Tag, carry_out, deliver
from fedsparse.wire import WireError

log = logging.getLogger("fedsparse")


class OutOfTimeError(Exception):
    """Ends this rank's own client, at a minibatch, when the round's deadline is over."""


class MPIWorkers:
    """The other ranks of the job; this one serves. Clients are handed out as `scheduling` says, to whoever is idle.

    own: this rank's worker, where it trains clients too: one at a time, and before each of its minibatches it takes the
    others' answers and hands out what waits. Without it, or while others would be done sooner, rank 0 sleeps.
    A rank that is killed, or silent for `failures.client_deadline` seconds over one client, is given up; so is one that
    has not said hello after `startup` seconds. Raises StoppedError when no rank is left.
    """

    def __init__(
        self,
        link: Link,
        samples: Sequence[int],
        failures: Failures,
        own: Worker | None = None,
        startup: float = 300.0,
        local_sums: bool = False,
    ) -> None:
        self.local_sums, self.own = local_sums, own
        if own is not None:
            own.between = self._attend
        self.link, self.samples, self.failures = link, samples, failures
        self.ready: set[int] = set()
        self.ready_by = time.monotonic() + startup
        self.orders: dict[int, Order] = {}
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)
        self.reassured = time.monotonic()
        self._numbers = itertools.count(time.time_ns())
        self._incidents: list[Incident] = []
        self._told: set[int] = set()
        self.kept: dict[int, bytes] = {}
        self._arrived: deque[Done | RankSum] = deque()
        self._job = Job(Tag.TRAIN, [], "", 0, math.inf)

    @property
    def ranks(self) -> list[int]:
        """The ranks that still answer."""
        return [rank for rank in range(1, self.link.size) if rank not in self.link.lost]

    def send(self, kind: Tag, data: bytes) -> None:
        """Send to every rank that still answers, and to this one's worker."""
        if self.own is not None and kind is not Tag.STOP:
            deliver(self.own, kind, data)
        for rank in self.ranks:
            self.link.send(rank, kind, data)

    def work(
        self, kind: Tag, clients: Sequence[int], task: str = "", round: int = 0, until: float = math.inf
    ) -> Iterator[Done | RankSum]:
        """Hand out the clients until all have come back, or have been left out; then have the ranks' sums."""
        waiting = sorted(clients, key=lambda id: (self.samples[id], -id))
        self._job = Job(kind, waiting, task, round, until)
        if self.local_sums and kind is Tag.TRAIN:
            self._job.declared = sum(self.samples[id] for id in clients)
        while waiting or self._arrived or self._job.summed or any(order.wanted for order in self.orders.values()):
            if self._arrived:
                yield self._arrived.popleft()
            elif time.monotonic() > until:
                yield from self._leave_out(waiting)
                return
            elif not self._work_too():
                self._ask_for_sums()
                self._look(min(0.5, max(0.0, until - time.monotonic())))

    def incidents(self) -> list[Incident]:
        """What ranks did that they should not, since this was last asked."""
        found, self._incidents = self._incidents, []
        return found

    def ranks_and_lost(self) -> tuple[int, list[int]]:
        """The size of the job, and the ranks that were killed, left, or were given up."""
        return self.link.size, sorted(self.link.lost)

    def close(self, seconds: float = 10.0) -> None:
        """Tell the ranks to stop, and end those still at work or that say no goodbye: incidents, as all lost by then.

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
        for rank in sorted(self.link.lost - self._told):
            self._told.add(rank)
            self._report(rank, None, f"lost: {'at work' if rank in self.orders else 'gone'} when the run was over")

    def _look(self, seconds: float) -> bool:
        """Hand out what waits and take the next message, for which to wait that long; whether one came."""
        waiting = self._job.waiting
        self._arrived.extend(self._lost(waiting))
        if not self.ranks and self.own is None:
            raise StoppedError("no worker rank is left: all were killed, or silent beyond the deadline")
        self._hand_out()
        self._reassure()
        message = self.link.receive(0.0 if self._arrived else seconds)
        if message is not None and (done := self._take(message)) is not None:
            self._arrived.append(done)
        return message is not None

    def _attend(self) -> None:
        """Amid this rank's own client: serve whoever is there."""
        while self._look(0.0):
            pass
        if time.monotonic() > self._job.until:
            raise OutOfTimeError

    def _work_too(self) -> bool:
        """Do one client here, if there is one that no other rank would finish sooner; whether there was."""
        job = self._job
        while self.own is not None and self._look(0.0):
            pass
        order = None if self.own is None else self._next_for(0)
        if self.own is None or order is None:
            return False
        self.orders[0], self.own.kept = order, self.kept
        try:
            done = carry_out(self.own, job.kind, order.client, job.task)
        finally:
            del self.orders[0]
        if time.monotonic() > job.until:
            done = Done(order.client, None, "not done by the round's deadline")
        elif done.answer is not None:
            self.paces[job.task].note(0, self.samples[order.client], done.seconds)
        self._arrived.append(done)
        return True

    def _hand_out(self) -> None:
        job = self._job
        for rank in self.ranks:
            if rank not in self.ready or rank in self.orders:
                continue
            order = self._next_for(rank)
            if order is not None:
                self._give(rank, job.kind, order)

    def _give(self, rank: int, kind: Tag, order: Order) -> None:
        job = self._job
        words = ORDER.pack(order.number, order.client, job.round, job.declared, job.confirmed.get(rank, 0))
        rest = self.kept.get(order.client, b"") if kind is Tag.TRAIN else job.task.encode()
        self.link.send(rank, kind, words + rest)
        self.orders[rank] = order

    def _ask_for_sums(self) -> None:
        """Once no client is left to train: those ranks that have something to send."""
        if self._job.waiting or any(order.wanted and order.client != NOBODY for order in self.orders.values()):
            return
        for rank in self._job.summed:
            if rank not in self.orders and rank not in self.link.lost:
                self._give(rank, Tag.SUM, Order(next(self._numbers), NOBODY, "", time.monotonic()))

    def _next_for(self, rank: int) -> Order | None:
        """Take a waiting client for an idle rank; None where the others do better without it."""
        job, now = self._job, time.monotonic()
        if not job.waiting:
            return None
        busy = {
            other: order.since + self.paces[order.task].expected(other, self.samples[order.client]) - now
            for other, order in self.orders.items()
            if order.wanted and order.client != NOBODY
        }
        at = self.paces[job.task].choose(rank, [self.samples[id] for id in job.waiting], busy)
        return None if at is None else Order(next(self._numbers), job.waiting.pop(at), job.task, now)

    def _reassure(self) -> None:
        """Several times within their patience, tell ranks that have no client that rank 0 waits too."""
        now = time.monotonic()
        if now < self.reassured + self.failures.patience / 4:
            return
        self.reassured = now
        for rank in self.ranks:
            if rank in self.ready and rank not in self.orders:
                self.link.send(rank, Tag.WAIT, b"")

    def _take(self, message: Received) -> Done | RankSum | None:
        """What a message from a rank amounts to; None where it answers no order that is still wanted."""
        rank, data = message.source, message.data
        if message.tag == Tag.HELLO:
            self.ready.add(rank)
            self.link.introduce(rank, data)
            return None
        order = self.orders.get(rank)
        readable = len(data) >= ANSWER.size
        number, client, seconds, peak, kept = ANSWER.unpack_from(data) if readable else (0, 0, 0.0, 0, 0)
        if order is None or (readable and number != order.number):
            self._report(rank, client if readable else None, "sent an answer that was not asked for, or sent it twice")
            return None
        del self.orders[rank]
        if order.client == NOBODY:
            return self._take_sum(rank, data[ANSWER.size :])
        if not order.wanted:
            self._report(
                rank, order.client, f"answered too late, {time.monotonic() - order.since:.1f} s after the order"
            )
            return None
        if not readable or client != order.client or not 0 <= kept <= len(data) - ANSWER.size:
            return Done(order.client, None, f"rank {rank} sent an answer that cannot be read")
        keeps, rest = bytes(data[ANSWER.size : ANSWER.size + kept]), data[ANSWER.size + kept :]
        if message.tag == Tag.ERROR:
            return Done(client, None, bytes(rest).decode(errors="replace"))
        self.paces[order.task].note(rank, self.samples[client], seconds)
        if message.tag == Tag.ANSWER:
            return Done(client, rest, "", seconds, peak, keeps=keeps)
        verdict = Verdict.unpack(rest)
        if verdict is None:
            return Done(client, None, f"rank {rank} sent an answer that cannot be read")
        if not verdict.refused:
            self._job.confirmed[rank] = number
            self._job.summed.setdefault(rank, []).append(client)
        return Done(client, None, "", seconds, peak, verdict, keeps)

    def _take_sum(self, rank: int, data: memoryview) -> RankSum | None:
        """A rank's sum; one that cannot be read costs the rank, and others train its clients again."""
        try:
            sections = sum_of(data, self._job.summed[rank])
        except WireError as error:
            self._report(rank, None, f"sent a sum that cannot be used: {error}")
            self.link.give_up(rank)
            return None
        del self._job.summed[rank]
        return RankSum(sections)

    def _leave_out(self, waiting: list[int]) -> Iterator[Done]:
        """Give up, for this round, the clients that are not done; ranks at work for them are heard out later."""
        for order in self.orders.values():
            if order.wanted and order.client != NOBODY:
                order.wanted = False
                waiting.append(order.client)
        for client in sorted(waiting):
            yield Done(client, None, "not done by the round's deadline")

    def _lost(self, waiting: list[int]) -> Iterator[Done]:
        """Give up silent ranks; the clients of lost ones wait again, or are left out."""
        now, limit = time.monotonic(), self.failures.client_deadline
        for rank in set(self.ranks) - self.ready if now > self.ready_by else ():
            self.link.give_up(rank)
        for rank in [rank for rank, order in self.orders.items() if rank and now > order.since + limit]:
            self.link.give_up(rank)
        for rank in sorted(self.link.lost - self._told):
            self._told.add(rank)
            order = self.orders.pop(rank, None)
            silent = order is not None and now > order.since + limit
            why = f"lost: silent for over {limit:g} s" if silent else "lost: its process ended"
            clients = self._job.summed.pop(rank, [])
            why += f"; with it the sum of clients {', '.join(map(str, clients))}" if clients else ""
            self._report(rank, None if order is None or order.client == NOBODY else order.client, why)
            if order is not None and order.wanted and order.client != NOBODY:
                clients.append(order.client)
            for client in clients:
                if self.failures.lost_clients == "leave out":
                    yield Done(client, None, f"its rank {rank} was lost")
                else:
                    bisect.insort(waiting, client, key=lambda id: (self.samples[id], -id))

    def _report(self, rank: int, client: int | None, reason: str) -> None:
        self._incidents.append({"rank": rank, "client": client, "reason": reason})
        log.warning("rank %d %s", rank, reason)
