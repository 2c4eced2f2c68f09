"""Cases, what is measured of one, and the rows they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
# Written before a case runs, so that a crash names its case.
STARTED = "started"


class NotMeasurableError(Exception):
    """Raised by a case that cannot run here; its sentence becomes the row's note."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one repeated call: median, 10th and 90th percentile, and how many were timed."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Measured:
    """What a case returns.

    Attributes:
        times: by name of the pass ("step", "forward", ...).
        error: relative error against the reference, checked before timing.
        peak_bytes: largest allocation while it ran, None where the device does not count it.
        rate: work per second of the first time, in `unit`.
    """

    times: dict[str, Timing]
    error: float | None = None
    peak_bytes: int | None = None
    rate: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Case:
    """One line of the table: `run` builds its operands, checks the result, then times it.

    Attributes:
        label: unique among the cases of all sections.
        versus: label of the case whose total time divided by this one's is its speed-up.
        seconds: what it is expected to take, set-up included.
    """

    label: str
    run: Callable[[Bench], Measured]
    versus: str = ""
    seconds: float = 2.0


@dataclass
class Row:
    """One case's outcome, as it is stored."""

    section: str
    case: str
    status: str
    note: str = ""
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    error: float | None = None
    peak_bytes: int | None = None
    rate: float | None = None
    unit: str = ""
    versus: str = ""
    speedup: float | None = None

    @property
    def total(self) -> float:
        """Sum of the medians, milliseconds."""
        return sum(time["median"] for time in self.times.values())

    @classmethod
    def of(cls, section: str, case: Case, measured: Measured) -> Row:
        """The row of a case that was measured."""
        times = {name: asdict(timing) for name, timing in measured.times.items()}
        return cls(
            section,
            case.label,
            MEASURED,
            times=times,
            error=measured.error,
            peak_bytes=measured.peak_bytes,
            rate=measured.rate,
            unit=measured.unit,
            versus=case.versus,
        )


def append(path: Path, row: Row) -> None:
    """Add one row to a file of JSON lines, on disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines; a last line cut off by a crash is left out."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield Row(**json.loads(line))
        except json.JSONDecodeError:
            return


def add_speedups(rows: list[Row]) -> None:
    """Fill in `speedup` where both the row and the one it is compared with were measured."""
    totals = {row.case: row.total for row in rows if row.status == MEASURED}
    for row in rows:
        base = totals.get(row.versus)
        if base and row.status == MEASURED and row.total:
            row.speedup = base / row.total
