"""The ranks' server against a link whose messages a test writes; what needs real ranks is in tests/mpi."""

import os
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_program import experiment

from fedsparse.comm.mpi import Link, Received
from fedsparse.federated import mpi_workers, worker_rank
from fedsparse.federated.errors import StoppedError
from fedsparse.federated.experiment import Failures
from fedsparse.federated.jobs import Order
from fedsparse.federated.local_sums import Verdict
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.ranks import server_works
from fedsparse.federated.worker_rank import ANSWER, ORDER, serve
from fedsparse.federated.workers import Done, Tag
from fedsparse.methods import FedAvg
from fedsparse.wire import Values, encode


class Scripted(Link):
    """Rank 0 of 3, which receives what it is given, in that order."""

    def __init__(self, *messages: tuple[int, Tag, bytes]) -> None:
        self.rank, self.size, self.lost = 0, 3, set()
        self._sending, self._processes = [], {}
        self.messages = [Received(source, tag, memoryview(data)) for source, tag, data in messages]
        self.sent: list[tuple[int, int]] = []

    def send(self, to: int, tag: int, data: bytes) -> None:
        self.sent.append((to, tag))

    def _poll(self) -> Received | None:
        return self.messages.pop(0) if self.messages else None


def test_a_rank_that_says_hello_to_the_next_run_while_another_still_leaves_is_heard() -> None:
    hello = f"elsewhere {os.getpid()}".encode()
    first = Scripted((1, Tag.STOP, b""), (1, Tag.HELLO, hello), (2, Tag.STOP, b""))
    workers = MPIWorkers(first, [5], Failures())
    workers.ready = {1, 2}
    workers.close()
    assert first.lost == set()
    assert first.sent == [(1, Tag.STOP), (2, Tag.STOP)]

    second = Scripted()
    message = second.receive(0.0)
    assert message is not None
    assert (message.source, message.tag, bytes(message.data)) == (1, Tag.HELLO, hello)
    assert second.receive(0.0) is None, "once"


def test_ranks_lost_since_the_last_round_are_incidents_once() -> None:
    """Rank 1 is at work for a client that nobody waits for, and rank 2 says no goodbye; rank 1 is named with its end."""
    workers = MPIWorkers(Scripted(), [5], Failures())
    workers.ready = {1, 2}
    workers.orders[1] = Order(7, 0, "", time.monotonic(), wanted=False)
    workers.close(0.1)
    assert [(entry["rank"], entry["reason"]) for entry in workers.incidents()] == [
        (1, "lost: at work when the run was over"),
        (2, "lost: gone when the run was over"),
    ]
    assert workers.ranks_and_lost() == (3, [1, 2])
    workers.close(0.1)
    assert workers.incidents() == []


class Busy(Scripted):
    """Its rank 1 answers the first order after 1.3 seconds; rank 2 has nothing to do."""

    def send(self, to: int, tag: int, data: bytes) -> None:
        super().send(to, tag, data)
        if tag == Tag.TRAIN:
            number, client, *_ = ORDER.unpack(data)
            answer = ANSWER.pack(number, client, 1.3, 7, 0) + b"report"
            self.answer = Received(to, Tag.ANSWER, memoryview(answer))
            self.due = time.monotonic() + 1.3

    def _poll(self) -> Received | None:
        if not self.messages and time.monotonic() > self.due:
            return self.answer
        return super()._poll()


def test_a_rank_without_a_client_is_told_that_the_server_waits_too() -> None:
    """A quarter of the patience of 1 s, and looked at every half second: at 0.5 and 1 s, to the idle rank alone."""
    identity = b"elsewhere 1"
    link = Busy((1, Tag.HELLO, identity), (2, Tag.HELLO, identity))
    link.due = time.monotonic() + 1e9
    (done,) = MPIWorkers(link, [5], Failures(server_deadline=1.0)).work(Tag.TRAIN, [0])
    assert (done.client, done.peak) == (0, 7)
    assert done.answer is not None
    assert bytes(done.answer) == b"report"
    assert link.sent[0] == (1, Tag.TRAIN)
    assert set(link.sent[1:]) == {(2, Tag.WAIT)}
    assert len(link.sent) in (2, 3), "a busy machine may miss one"


class AsWorker(Scripted):
    """Rank 1; what it is given comes a moment after it is asked for."""

    def _poll(self) -> Received | None:
        time.sleep(0.05)
        return super()._poll()


def test_a_worker_counts_the_servers_silence_from_the_end_of_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def long_work(*_: object) -> Done:
        time.sleep(0.5)
        return Done(3, b"report")

    monkeypatch.setattr(worker_rank, "carry_out", long_work)
    link = AsWorker((0, Tag.TRAIN, ORDER.pack(1, 3, 0, 0, 0)), (0, Tag.WAIT, b""), (0, Tag.STOP, b""))
    serve(link, SimpleNamespace(), 0.3)  # type: ignore[arg-type]
    assert link.sent == [(0, Tag.HELLO), (0, Tag.ANSWER), (0, Tag.STOP)]


def test_a_worker_leaves_a_silent_server_after_its_patience() -> None:
    link, begun = AsWorker((0, Tag.WAIT, b"")), time.monotonic()
    with pytest.raises(StoppedError, match=r"the server was silent for 0.3 seconds"):
        serve(link, None, 0.3)  # type: ignore[arg-type]
    assert 0.3 < time.monotonic() - begun < 3
    assert link.abandoned


@pytest.mark.parametrize(
    ("settings", "seconds"), [({}, 1200), ({"client_deadline": 900.0}, 1800), ({"server_deadline": 5.0}, 5)]
)
def test_the_patience_with_the_server_is_twice_that_with_a_client(settings: dict[str, float], seconds: float) -> None:
    assert Failures(**settings).patience == seconds  # type: ignore[arg-type]


class Own:
    """Rank 0's worker: what it is sent, and clients of two minibatches, before each of which others are attended to."""

    def __init__(self) -> None:
        self.between = lambda: None
        self.said: list[object] = []

    def receive_weights(self, data: bytes) -> None:
        self.said.append(data)

    receive_mask = receive_task = receive_weights


class Summing(Scripted):
    """Its ranks train and judge at once, and send the sums of the clients that are confirmed; rank 1 sends `bad`."""

    bad: bytes

    def __init__(self) -> None:
        super().__init__((1, Tag.HELLO, b"elsewhere 1"), (2, Tag.HELLO, b"elsewhere 1"))
        self.held: dict[int, list[int]] = {1: [], 2: []}
        self.last: dict[int, tuple[int, int]] = {}

    def send(self, to: int, tag: int, data: bytes) -> None:
        super().send(to, tag, data)
        number, client, _, declared, confirmed = ORDER.unpack(data)
        assert declared == 10
        if to in self.last:
            assert confirmed == self.last[to][0]
            self.held[to].append(self.last.pop(to)[1])
        if tag == Tag.TRAIN:
            self.last[to] = number, client
            rest = Verdict(100, 5, 0.5).pack()
        else:
            rest = self.bad if to == 1 else of_clients(*self.held[to])
            self.held[to] = []
        answer = ANSWER.pack(number, client, 1.0, 7, 0) + rest
        self.messages.append(Received(to, Tag.VERDICT if tag == Tag.TRAIN else Tag.SUM, memoryview(answer)))


def of_clients(*clients: int) -> bytes:
    return encode("sum", 0, 2, {"clients": Values(np.array(clients, dtype=np.int64))})


@pytest.mark.parametrize(
    ("bad", "why"), [(b"?", "too short"), (of_clients(1), "not that of clients [0]")], ids=["garbage", "others"]
)
@pytest.mark.parametrize("leave_out", [False, True])
def test_a_rank_whose_sum_cannot_be_used_is_given_up_and_its_client_trains_again(
    bad: bytes, why: str, leave_out: bool
) -> None:
    """Two clients, one on each rank; then rank 2 trains client 0 too and sends a second sum, or 0 is left out."""
    link = Summing()
    link.bad = bad
    failures = Failures(lost_clients="leave out" if leave_out else "hand over")
    workers = MPIWorkers(link, [5, 5], failures, local_sums=True)
    found = list(workers.work(Tag.TRAIN, [0, 1]))
    done = [entry for entry in found if isinstance(entry, Done)]
    assert [entry.client for entry in done] == [0, 1, 0]
    assert [entry.failed for entry in done] == [False, False, leave_out]
    assert len(found) - len(done) == (1 if leave_out else 2)
    assert link.lost == {1}
    first, second = (entry["reason"] for entry in workers.incidents())
    assert why in first
    assert second == "lost: its process ended; with it the sum of clients 0"


class Answering(Scripted):
    """Its other ranks answer each order at once, but not before rank 0 has begun its own client."""

    own: Own

    def _poll(self) -> Received | None:
        answers = self.messages and self.messages[0].tag == Tag.ANSWER
        return None if answers and len(self.own.said) < 2 else super()._poll()

    def send(self, to: int, tag: int, data: bytes) -> None:
        super().send(to, tag, data)
        if tag == Tag.TRAIN:
            number, client, *_ = ORDER.unpack(data)
            self.messages.append(Received(to, Tag.ANSWER, memoryview(ANSWER.pack(number, client, 1.0, 7, 0))))


def two_minibatches(own: Own, kind: Tag, client: int, task: str) -> Done:
    own.said.append(("begins", client))
    own.between()
    own.between()
    own.said.append(("ends", client))
    return Done(client, b"mine", seconds=1.0)


def test_rank_0_works_too_and_hands_out_amid_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six clients of a size: ranks 1 and 2 get 0 and 1, rank 0 does 2, and before it ends the others have done 3 to 5."""
    monkeypatch.setattr(mpi_workers, "carry_out", two_minibatches)
    own, link = Own(), Answering((1, Tag.HELLO, b"elsewhere 1"), (2, Tag.HELLO, b"elsewhere 1"))
    link.own = own
    workers = MPIWorkers(link, [5] * 6, Failures(), own)  # type: ignore[arg-type]
    workers.send(Tag.WEIGHTS, b"w")
    assert own.said == [b"w"], "its worker gets what the others get"
    done = list(workers.work(Tag.TRAIN, range(6)))
    assert own.said == [b"w", ("begins", 2), ("ends", 2)]
    assert sorted(found.client for found in done) == [0, 1, 2, 3, 4, 5]
    assert [found.client for found in done if found.answer == b"mine"] == [2]
    assert [(to, tag) for to, tag in link.sent if tag == Tag.TRAIN] == [(1, 4), (2, 4), (1, 4), (2, 4), (1, 4)]


def test_rank_0_goes_on_alone_where_all_others_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_workers, "carry_out", two_minibatches)
    link = Scripted()
    link.lost = {1, 2}
    workers = MPIWorkers(link, [5, 5], Failures(), Own())  # type: ignore[arg-type]
    assert [found.client for found in workers.work(Tag.TRAIN, [0, 1])] == [0, 1]
    assert [entry["rank"] for entry in workers.incidents()] == [1, 2]


def test_rank_0_leaves_its_own_client_at_the_rounds_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first minibatch is within it, the second is not; nobody else is there."""

    def slow(own: Own, kind: Tag, client: int, task: str) -> Done:
        own.between()
        time.sleep(0.3)
        with pytest.raises(mpi_workers.OutOfTimeError):
            own.between()
        return Done(client, None, "OutOfTimeError")

    monkeypatch.setattr(mpi_workers, "carry_out", slow)
    workers = MPIWorkers(Scripted(), [5, 5], Failures(), Own())  # type: ignore[arg-type]
    found = list(workers.work(Tag.TRAIN, [0, 1], until=time.monotonic() + 0.2))
    assert [(done.client, done.error) for done in found] == [(n, "not done by the round's deadline") for n in (0, 1)]


@pytest.mark.parametrize(
    ("setting", "ranks", "here", "cores", "expected"),
    [
        (None, 2, 2, 2, True), (None, 3, 3, 2, False), (None, 4, 2, 2, True), (None, 9, 1, 64, False),
        (True, 9, 9, 2, True), (False, 2, 2, 2, False),
    ],
)  # fmt: skip
def test_rank_0_works_by_default_where_few_ranks_have_a_core_each(
    setting: bool | None, ranks: int, here: int, cores: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    trial = replace(experiment(FedAvg()), server_works=setting)
    assert server_works(trial, ranks, here) == expected


@pytest.mark.parametrize(("host", "killed", "beyond"), [("elsewhere", [], True), (socket.gethostname(), [17], False)])
def test_a_silent_rank_is_ended_at_once_on_this_host_and_with_the_job_on_another(
    host: str, killed: list[int], beyond: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, _: ended.append(process))
    monkeypatch.setattr(Link, "beyond_reach", False)
    link = Scripted()
    link.introduce(1, memoryview(f"{host} 17".encode()))
    link.give_up(1)
    assert (link.lost, ended, Link.beyond_reach) == ({1}, killed, beyond)
