"""What rank 0 has asked of the other ranks, as it remembers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedsparse.federated.workers import Tag

NOBODY = -1
"""The client of an order to send what a rank has summed."""


@dataclass
class Order:
    """What a rank is at: a client or `NOBODY`, since when (monotonic seconds); whether its answer is still wanted."""

    number: int
    client: int
    task: str
    since: float
    wanted: bool = True


@dataclass
class Job:
    """What `MPIWorkers.work` was asked for; waiting: clients that nobody is at, those with the most samples last.

    declared: samples of all clients where the ranks sum up themselves, else 0. summed: by rank the clients that are in
    its sum, which it has not sent yet; confirmed: the number of its last order whose verdict came.
    """

    kind: Tag
    waiting: list[int]
    task: str
    round: int
    until: float
    declared: int = 0
    summed: dict[int, list[int]] = field(default_factory=dict)
    confirmed: dict[int, int] = field(default_factory=dict)
