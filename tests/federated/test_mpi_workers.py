"""The ranks' server against a link whose messages a test writes; what needs real ranks is in tests/mpi."""

import os

from fedsparse.comm.mpi import Link, Received
from fedsparse.federated.experiment import Failures
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.workers import Tag


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
