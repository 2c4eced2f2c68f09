"""What is shown while a run goes on, on standard error: a live bar on a terminal, a line a round elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fedsparse.report.units import bytes_text, percent_text, seconds_text

OnRound = Callable[[dict[str, Any]], None]


def progress(name: str, rounds: int, quiet: bool) -> AbstractContextManager[OnRound]:
    """Return a context whose value takes each round's record."""
    if quiet:
        return nullcontext(lambda record: None)
    return live_bar(name, rounds) if sys.stderr.isatty() else nullcontext(plain_lines(name, rounds))


def plain_lines(name: str, rounds: int) -> OnRound:
    """Return a function that prints one line for each round."""
    start = time.perf_counter()

    def show(record: dict[str, Any]) -> None:
        done = record["round"] + 1
        left = (time.perf_counter() - start) / done * (rounds - done)
        parts = [f"{name}: round {done}/{rounds}", *facts(record).values(), f"{seconds_text(left)} left"]
        print("  ".join(parts), file=sys.stderr, flush=True)

    return show


def facts(record: dict[str, Any]) -> dict[str, str]:
    """Return what is worth seeing of a round."""
    shown = {
        "accuracy": f"accuracy {percent_text(record['accuracy'])}",
        "density": f"density {percent_text(record['density'])}",
        "bytes": f"{bytes_text(record['bytes_down'])} down {bytes_text(record['bytes_up'])} up",
        "seconds": seconds_text(record["seconds"]),
    }
    if record["rejected"]:
        shown["rejected"] = f"{len(record['rejected'])} rejected"
    return shown


@contextmanager
def live_bar(name: str, rounds: int) -> Iterator[OnRound]:
    """Show a bar with the last round's facts and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(name, total=rounds, facts="starting")
        yield lambda record: bar.update(
            task, completed=record["round"] + 1, facts="  ".join(facts(record).values()), refresh=True
        )
