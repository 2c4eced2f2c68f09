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
        done = record["round"] + 1
        self.seconds.append(record["seconds"])
        left = sum(self.seconds) / len(self.seconds) * (self.rounds - done)
        parts = [f"{self.name}: round {done}/{self.rounds}", *facts(record), f"{seconds_text(left)} left"]
        print("  ".join(parts), file=sys.stderr, flush=True)

    def status(self, status: dict[str, Any]) -> None:
        """Print nothing within a round."""


class Bar:
    """A bar of the rounds with the clients of this one, accuracy, bytes, memory, losses and the time left."""

    def __init__(self, progress: Any, name: str, rounds: int) -> None:
        self.progress = progress
        self.task = progress.add_task(name, total=rounds, facts="starting")

    def round(self, record: dict[str, Any]) -> None:
        """Show the round's facts."""
        self.progress.update(self.task, completed=record["round"] + 1, facts="  ".join(facts(record)), refresh=True)

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

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn())
    with Progress(
        *columns, TextColumn("{task.fields[facts]}"), console=Console(stderr=True), refresh_per_second=4
    ) as shown:
        yield Bar(shown, name, rounds)


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
    counts = Counter(f"{entry['level']}/{entry['splits']}" for entry in entries)
    return [", ".join(f"{plan} x{count}" for plan, count in counts.items())] if counts else []


def status_facts(status: dict[str, Any]) -> list[str]:
    """Return what is worth seeing within a round; bytes are those of the run so far."""
    left = status["seconds_left"]
    return [
        f"clients {status['clients_done']}/{status['clients']}",
        f"accuracy {percent_text(status['accuracy'])}",
        f"{bytes_text(status['bytes_down'])} down {bytes_text(status['bytes_up'])} up",
        f"{bytes_text(status['peak_bytes'])} memory",
        *losses(status),
        *([] if left is None else [f"{seconds_text(left)} left"]),
    ]


def losses(counts: dict[str, Any]) -> list[str]:
    """Return how many reports were rejected and clients dropped, where any was."""
    return [f"{counts[kind]} {kind}" for kind in ("rejected", "dropped") if counts[kind]]
