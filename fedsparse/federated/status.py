"""What a run is at while it runs: told to whoever shows it, and kept in `progress.json` for other processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "progress.json"
OFTEN = 0.25
"""Seconds between two tellings at least."""
Status = dict[str, Any]


class Teller:
    """Tells a status to `show` and writes it to the folder `out`, either of them optional, a few times a second.

    The file appears whole, by a rename, but is not synced: it is of no use after the process.
    """

    def __init__(self, out: Path | None, show: Callable[[Status], None] | None) -> None:
        self.out, self.show = out, show
        self.begun, self.last = time.monotonic(), -OFTEN
        self.rounds_before: int | None = None

    def tell(self, status: Status, now: bool = False) -> None:
        """Tell it, unless that was done a moment ago; `now`: in any case."""
        if not now and time.monotonic() - self.last < OFTEN:
            return
        self.last = time.monotonic()
        full = {**status, "seconds_left": self.seconds_left(status)}
        if self.show is not None:
            self.show(full)
        if self.out is not None:
            temporary = self.out / f".{FILE}"
            temporary.write_text(json.dumps(full) + "\n")
            os.replace(temporary, self.out / FILE)

    def seconds_left(self, status: Status) -> float | None:
        """Seconds to the end at the speed of this process so far; None where it has done nothing yet."""
        done = status["round"] + status["clients_done"] / max(1, status["clients"])
        if self.rounds_before is None:
            self.rounds_before = status["round"]
        own = done - self.rounds_before
        return (time.monotonic() - self.begun) / own * (status["rounds"] - done) if own > 0 else None
