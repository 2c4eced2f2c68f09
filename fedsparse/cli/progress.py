"""What is shown while a run goes on, on standard error: a live bar on a terminal, a line a round elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from fedsparse.report.units import bytes_text, percent_text, seconds_text


class Display(Protocol):
    """Takes each round's record and, several times a second, what the run is at (`federated.status`)."""

    def round(self, record: dict[str, Any]) -> None:
        """Show that a round is done."""

    def status(self, status: dict[str, Any]) -> None:
        """Show what the run is at."""


class Silence:
    """Shows nothing."""

    def round(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def status(self, status: dict[str, Any]) -> None:
        """Show nothing."""


class Lines:
    """One line a round; the time left is that of the mean round so far."""

    def __init__(self, name: str, rounds: int) -> None:
        self.name, self.rounds = name, rounds
        self.seconds: list[float] = []

    def round(self, record: dict[str, Any]) -> None:
        """Print the line."""
        parts = [
            f"{self.name}: round {record['round'] + 1}/{self.rounds}",
            *facts(record),
            left_after(record, self.seconds, self.rounds),
        ]
        print("  ".join(parts), file=sys.stderr, flush=True)

    def status(self, status: dict[str, Any]) -> None:
        """Print nothing within a round."""


class Bar:
    """A bar of the rounds, then, as far as the terminal is wide, the clients of this one, the time left, the rest."""

    def __init__(self, progress: Any, name: str, rounds: int) -> None:
        self.progress, self.rounds = progress, rounds
        self.seconds: list[float] = []
        self.task = progress.add_task(name, total=rounds, facts="starting")

    def round(self, record: dict[str, Any]) -> None:
        """Show the round's facts."""
        shown = "  ".join([left_after(record, self.seconds, self.rounds), *facts(record)])
        self.progress.update(self.task, completed=record["round"] + 1, facts=shown, refresh=True)

    def status(self, status: dict[str, Any]) -> None:
        """Show how far the round is."""
        if status["round"] == status["rounds"]:
            return
        share = status["clients_done"] / max(1, status["clients"])
        self.progress.update(self.task, completed=status["round"] + share, facts="  ".join(status_facts(status)))


def progress(name: str, rounds: int, quiet: bool) -> AbstractContextManager[Display]:
    """Return a context whose value shows a run of so many rounds."""
    if quiet:
        return nullcontext(Silence())
    return bar(name, rounds) if sys.stderr.isatty() else nullcontext(Lines(name, rounds))


@contextmanager
def bar(name: str, rounds: int) -> Iterator[Display]:
    """Show a bar on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    count = len(f"{rounds}/{rounds}")
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=24)),
        BarColumn(bar_width=10, table_column=Column(min_width=10)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=count)),
        # What does not fit is cut off at its end.
        TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True, refresh_per_second=4) as shown:
        yield Bar(shown, name, rounds)


def left_after(record: dict[str, Any], seconds: list[float], rounds: int) -> str:
    """Note a round's seconds, and return the time left at the mean of those noted."""
    seconds.append(record["seconds"])
    left = sum(seconds) / len(seconds) * (rounds - record["round"] - 1)
    return f"{seconds_text(left)} left"


def facts(record: dict[str, Any]) -> list[str]:
    """Return what is worth seeing of a round."""
    return [
        f"accuracy {percent_text(record['accuracy'])}",
        f"density {percent_text(record['density'])}",
        f"{bytes_text(record['bytes_down'])} down {bytes_text(record['bytes_up'])} up",
        seconds_text(record["seconds"]),
        *losses({kind: len(record.get(kind, [])) for kind in ("rejected", "dropped")}),
        f"{bytes_text(record['peak_bytes'])} memory",
        *plans(record.get("plans", [])),
    ]


def plans(entries: list[dict[str, Any]]) -> list[str]:
    """Return how many clients trained by which plan, where they have memory limits: "recompute/2 x3"."""
    counts = Counter(f"{entry['level']}/{entry['pieces']}" for entry in entries)
    return [", ".join(f"{plan} x{count}" for plan, count in counts.items())] if counts else []


def status_facts(status: dict[str, Any]) -> list[str]:
    """Return what is worth seeing within a round; bytes are those of the run so far."""
    left = status["seconds_left"]
    return [
        f"clients {status['clients_done']}/{status['clients']}",
        *([] if left is None else [f"{seconds_text(left)} left"]),
        f"accuracy {percent_text(status['accuracy'])}",
        f"{bytes_text(status['bytes_down'])} down {bytes_text(status['bytes_up'])} up",
        f"{bytes_text(status['peak_bytes'])} memory",
        *losses(status),
    ]


def losses(counts: dict[str, Any]) -> list[str]:
    """Return how many reports were rejected and clients dropped, where any was."""
    return [f"{counts[kind]} {kind}" for kind in ("rejected", "dropped") if counts[kind]]
