"""A rank's own sum of its clients' reports, sent once a round (`[ranks] sums = "local"`).

A rank judges each report as rank 0 would, by the same functions, tells rank 0 the verdict, and keeps the report until
rank 0's next word says that the verdict came and counts: then it is added. So the sum holds exactly the clients that
rank 0 knows to be in it. A `Total` adds integers, so that sums of sums have the bits of one sum. A rank's model has the
masks and weights that its clients start from; the methods' `expect` and `digest` see it as the server's, without state.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fedsparse.federated.admission import admit
from fedsparse.federated.method import Sections
from fedsparse.federated.server import Server
from fedsparse.federated.total import Total
from fedsparse.federated.validate import UpdateError
from fedsparse.federated.worker import Worker
from fedsparse.wire import Spec, Values, WireError, decode, encode

VERDICT = struct.Struct("<qqd")


class Verdict(NamedTuple):
    """What a rank says of a report: the bytes it took, n_k and the training loss, or why it was refused."""

    nbytes: int
    samples: int
    loss: float
    refused: str = ""

    def pack(self) -> bytes:
        """The bytes that `unpack` reads."""
        return VERDICT.pack(self.nbytes, self.samples, self.loss) + self.refused.encode()

    @classmethod
    def unpack(cls, data: memoryview) -> Verdict | None:
        """The verdict in these bytes; None where they are too few."""
        if len(data) < VERDICT.size:
            return None
        nbytes, samples, loss = VERDICT.unpack_from(data)
        return cls(nbytes, samples, loss, bytes(data[VERDICT.size :]).decode(errors="replace"))


class Pending(NamedTuple):
    """A judged report that rank 0 has not confirmed yet: the number of its order, n_k, and what would be added."""

    order: int
    client: int
    samples: int
    sections: Sections


def sum_of(data: memoryview, clients: list[int]) -> Sections:
    """What a rank's sum of these clients adds; WireError where it is no sum, or of others."""
    sections = decode(data).sections
    held = sections.pop("clients", None)
    if not isinstance(held, Values) or held.array.tolist() != clients:
        raise WireError(f"it is not that of clients {clients}")
    return sections


@dataclass
class LocalSum:
    """The sum of one worker rank. view: its worker's model as a server, for `expect` and `digest`."""

    worker: Worker
    view: Server
    total: Total = field(default_factory=lambda: Total(0))
    pending: Pending | None = None
    expect: Mapping[str, Spec] | None = None

    def begin(self) -> None:
        """A round's weights came: whatever was not asked for is of no use any more."""
        self.total, self.pending, self.expect = Total(0), None, None

    def confirm(self, order: int) -> None:
        """Rank 0 has the verdict on that order (0: on none); a report that it does not confirm is not added."""
        if self.pending is not None and self.pending.order == order:
            self.total.add(self.pending.client, self.pending.samples, self.pending.sections)
        self.pending = None

    def judge(self, order: int, round: int, client: int, declared: int, report: bytes | memoryview) -> Verdict:
        """Judge a report; declared: samples of all clients that the round asks."""
        self.total.declared = declared
        self.worker.return_to_common_mask()
        method = self.worker.method
        if self.expect is None:
            self.expect = method.expect(self.view, round)
        try:
            facts, sections = admit(self.view, method, report, "report", round, client, self.expect)
        except UpdateError as reason:
            return Verdict(len(report), 0, float("nan"), str(reason))
        self.pending = Pending(order, client, facts.samples, sections)
        return Verdict(len(report), facts.samples, facts.loss)

    def take(self, round: int, rank: int) -> bytes:
        """The sum as a message; the next one begins at 0."""
        message = encode("sum", round, rank, self.total.sections())
        self.total = Total(self.total.declared)
        return message
