"""The ranks' server against a link whose messages a test writes; what needs real ranks is in tests/mpi."""

import os
import struct
import time

import pytest

from fedsparse.comm.mpi import Link, Received
from fedsparse.federated import mpi_workers
from fedsparse.federated.errors import StoppedError
from fedsparse.federated.experiment import Failures
from fedsparse.federated.mpi_workers import MPIWorkers, serve
from fedsparse.federated.workers import Done, Tag


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


class Busy(Scripted):
    """Its rank 1 answers the first order after 1.3 seconds; rank 2 has nothing to do."""

    def send(self, to: int, tag: int, data: bytes) -> None:
        super().send(to, tag, data)
        if tag == Tag.TRAIN:
            number, client, _ = struct.unpack("<qqq", data)
            answer = struct.pack("<qqdq", number, client, 1.3, 7) + b"report"
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

    monkeypatch.setattr(mpi_workers, "carry_out", long_work)
    link = AsWorker((0, Tag.TRAIN, struct.pack("<qqq", 1, 3, 0)), (0, Tag.WAIT, b""), (0, Tag.STOP, b""))
    serve(link, None, 0.3)  # type: ignore[arg-type]
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
