"""When masks are adjusted, and by how much."""

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["cosine", "constant", "linear"]


@dataclass(frozen=True)
class Schedule:
    """Adjustment rounds are t with t % interval == 0 and 0 < t <= last; `rate(t)` decays along that span.

    last need not be a whole number: half of an odd number of rounds is none.
    decay: cosine c(t) = (1 + cos(pi t / last)) / 2, linear 1 - t / last, or constant 1.
    """

    interval: int
    last: float
    decay: Decay = "cosine"

    def adjusts(self, t: int) -> bool:
        """Whether round t (counted from 0) is an adjustment round."""
        return 0 < t <= self.last and t % self.interval == 0

    def index(self, t: int) -> int:
        """The number of adjustment rounds before round t: 0 at the first."""
        return t // self.interval - 1

    def rate(self, t: int) -> float:
        """The decay factor in [0, 1] at round t."""
        if self.decay == "constant":
            return 1.0
        share = min(t / self.last, 1.0)
        return 1 - share if self.decay == "linear" else (1 + math.cos(math.pi * share)) / 2
