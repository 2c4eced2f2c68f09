"""Runs of one configuration under several seeds as one: means, spreads, and what a target accuracy took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fedsparse.report.records import RunRecord


@dataclass(frozen=True)
class Spread:
    """The mean of some numbers, and their sample standard deviation where there are two or more."""

    mean: float
    deviation: float | None


def spread(numbers: Iterable[float | None]) -> Spread | None:
    """Return the spread of the numbers that are there; None where there is none."""
    known = [number for number in numbers if number is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, at least one."""

    runs: list[RunRecord]

    @property
    def label(self) -> str:
        """The name that the runs share."""
        return self.runs[0].label

    def over(self, number: Callable[[RunRecord], float | None]) -> Spread | None:
        """Return the spread of a number over the runs that have it."""
        return spread(number(run) for run in self.runs)

    def of(self, key: str) -> Spread | None:
        """Return the spread of an entry of the results."""
        return self.over(lambda run: run.result.get(key))

    def text(self, key: str) -> str | None:
        """Return an entry of the first result that is text."""
        value = self.runs[0].result.get(key)
        return None if value is None else str(value)


def grouped(runs: Iterable[RunRecord]) -> list[Group]:
    """Return the runs by label, in the order in which the labels come first."""
    by_label: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    return [Group(members) for members in by_label.values()]


def cost_of_target(run: RunRecord, target: float) -> dict[str, Any]:
    """Return the rounds, bytes and seconds up to the first test of at least this accuracy; None where there is none.

    Bytes are those of both directions and all clients; bytes and seconds count what came before round 0. Where that
    included training and reached the target by itself, it took 0 rounds.
    """
    opening, before = run.result.get("opening", {}), opening_accuracy(run)
    if before is not None and before >= target:
        return {"rounds": 0, "bytes": opening["bytes_down"] + opening["bytes_up"], "seconds": opening["seconds"]}
    costs = {"rounds": rounds_so_far(run), "bytes": bytes_so_far(run), "seconds": seconds_so_far(run)}
    place = next((at for at, accuracy in run.accuracies() if accuracy >= target), None)
    return {what: None if place is None else series[place] for what, series in costs.items()}


def opening_accuracy(run: RunRecord) -> float | None:
    """Return the accuracy of weights that were trained before round 0; None where none were."""
    return run.result.get("opening", {}).get("accuracy")


def rounds_so_far(run: RunRecord) -> list[float]:
    """Return, for each record, the number of rounds done at its end."""
    return [record["round"] + 1 for record in run.rounds]


def bytes_so_far(run: RunRecord) -> list[float]:
    """Return, for each round, the bytes sent up to its end in both directions."""
    return list(accumulate(record["bytes_down"] + record["bytes_up"] for record in run.rounds))


def seconds_so_far(run: RunRecord) -> list[float]:
    """Return, for each round, the seconds up to its end, with those before the first round."""
    opening = run.result.get("opening", {}).get("seconds", 0.0)
    return list(accumulate((record["seconds"] for record in run.rounds), initial=opening))[1:]
