"""A worker rank of an MPI job: what it is told by rank 0 (`mpi_workers`), and what it answers."""

from __future__ import annotations

import struct
import time

from fedsparse.comm.mpi import Link
from fedsparse.federated import faults
from fedsparse.federated.errors import StoppedError
from fedsparse.federated.local_sums import LocalSum
from fedsparse.federated.worker import Worker
from fedsparse.federated.workers import Tag, carry_out, deliver

ANSWER, ORDER = struct.Struct("<qqdqq"), struct.Struct("<qqqqq")
"""What stands before an answer (number of the order, client, seconds, peak bytes, and the length of what the client
keeps, which comes next), and before an order's task, or to train what the client kept: number, client, round, and where
the rank is to sum (`local_sums`) the samples of all clients of the round, else 0, and the number of the order whose
verdict counts."""
_GOES_ON = "`fedsparse resume` goes on from its last checkpoint"


def serve(link: Link, worker: Worker, patience: float, sums: LocalSum | None = None) -> None:
    """A worker rank's life: take messages from rank 0, carry out orders, until it says stop.

    sums: where the rank adds up its clients' reports itself. patience: seconds of silence after which the server counts
    as gone, so that no rank waits for ever.
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
        if kind is Tag.WEIGHTS and sums is not None:
            sums.begin()
        if kind in (Tag.TRAIN, Tag.PERFORM):
            answer(link, worker, kind, message.data, sums)
        elif kind is Tag.SUM and sums is not None:
            send_sum(link, sums, message.data)
        elif kind is not Tag.WAIT:
            deliver(worker, kind, message.data)
        until = time.monotonic() + patience


def answer(link: Link, worker: Worker, kind: Tag, order: memoryview, sums: LocalSum | None = None) -> None:
    """Carry out one order and send what comes of it."""
    number, client, round, declared, confirmed = ORDER.unpack_from(order)
    if sums is not None:
        sums.confirm(confirmed)
    given, task = order[ORDER.size :], ""
    if kind is Tag.PERFORM:
        task = bytes(given).decode()
    else:
        worker.kept = {client: given}
    done = carry_out(worker, kind, client, task)
    head = ANSWER.pack(number, client, done.seconds, done.peak, len(done.keeps)) + done.keeps
    tag, rest = (Tag.ERROR, done.error.encode()) if done.answer is None else (Tag.ANSWER, done.answer)
    if sums is not None and declared and done.answer is not None:
        tag, rest = Tag.VERDICT, sums.judge(number, round, client, declared, done.answer).pack()
    faults.reach("answer", round)
    for frame in faults.answers(head + rest, round):
        link.send(0, tag, frame)


def send_sum(link: Link, sums: LocalSum, order: memoryview) -> None:
    """Send what the rank has added up."""
    number, client, round, _, confirmed = ORDER.unpack_from(order)
    sums.confirm(confirmed)
    faults.reach("sum", round)
    link.send(0, Tag.SUM, ANSWER.pack(number, client, 0.0, 0, 0) + sums.take(round, link.rank))
