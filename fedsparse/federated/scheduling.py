"""Which client a rank gets next: the largest that it would finish no later than another rank could."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FIRST_GUESS = 1e-3
"""Seconds a sample where none was measured yet; all ranks count as equally fast then."""


@dataclass
class Pace:
    """Measured seconds a sample of each rank; its first client is not measured, because it warms the rank up."""

    _seconds: dict[int, float] = field(default_factory=dict)
    _warm: set[int] = field(default_factory=set)

    def note(self, rank: int, samples: int, seconds: float) -> None:
        """Learn from a client that a rank has done; older clients count half as much with each."""
        if rank not in self._warm:
            self._warm.add(rank)
            return
        measured = seconds / samples
        self._seconds[rank] = (self._seconds.get(rank, measured) + measured) / 2

    def expected(self, rank: int, samples: int) -> float:
        """Seconds that a rank will take; where it was not measured, the mean of those that were."""
        known = self._seconds.values()
        mean = sum(known) / len(known) if known else FIRST_GUESS
        return samples * self._seconds.get(rank, mean)

    def choose(self, rank: int, sizes: Sequence[int], busy: Mapping[int, float]) -> int | None:
        """Where in `sizes`, samples of the waiting clients in ascending order, the rank's next client is.

        busy: seconds until each working rank is expected to be free; one that is overdue is expected to need as long
        again as it is overdue, so that a stopped one soon counts for nothing. None where others, soon free, do better.
        """
        for at in reversed(range(len(sizes))):
            others = [abs(left) + self.expected(other, sizes[at]) for other, left in busy.items()]
            if not others or self.expected(rank, sizes[at]) <= min(others):
                return at
        return None
