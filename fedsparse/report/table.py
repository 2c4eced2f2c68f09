"""The comparison of runs as rows of text, for the terminal and for the HTML page alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedsparse.report.groups import Group, Spread, cost_of_target, grouped, opening_accuracy, spread
from fedsparse.report.records import RunRecord
from fedsparse.report.units import DASH, bytes_text, count_text, percent_text, ratio_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "run",
    "method",
    "accuracy",
    "density",
    "multiply-adds (of dense)",
    "time a round",
    "peak memory",
    "bytes down",
    "bytes up",
    "bytes, to the first",
)
WORDS, FIRST_OF_BYTES = COLUMNS[:2], "bytes down"
NUMBERS = ("accuracy", "perplexity", "density", "macs", "seconds_per_round", "peak_bytes", "bytes_down", "bytes_up")
TARGET_COSTS = ("rounds", "bytes", "seconds")


class Comparison:
    """Runs side by side, those that differ in the seed alone as one row; ratios are to the first row.

    target: an accuracy in [0, 1]; with it rows say what it took to reach that, and where weights were trained before
    round 0, as PruneFL's at one client, from which accuracy the rounds began.
    """

    def __init__(self, runs: list[RunRecord], target: float | None = None) -> None:
        self.groups, self.target = grouped(runs), target

    def columns(self) -> list[str]:
        """Return the heads of the columns of `rows`."""
        columns = list(COLUMNS)
        if self._has_perplexity():
            columns.insert(3, "perplexity")
        if self.target is not None:
            columns += [f"{what} to {100 * self.target:.4g} %" for what in TARGET_COSTS]
        return columns

    def rows(self) -> list[list[str]]:
        """Return one row of text per group of runs, in the order of `columns`."""
        return [self._row(group) for group in self.groups]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        columns = self.columns()
        lines = [columns, ["---"] * len(columns), *self.rows()]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return table + "".join(f"\n{note}\n" for note in self.notes())

    def notes(self) -> list[str]:
        """Return a sentence for each setting of `[train]` in which the runs differ."""
        tables = {group.label: group.runs[0].settings.get("train") or {} for group in self.groups}
        keys = dict.fromkeys(key for table in tables.values() for key in table)
        notes = []
        for key in keys:
            labels: dict[str, list[str]] = {}
            for label, table in tables.items():
                labels.setdefault(str(table.get(key, "not recorded")), []).append(label)
            if len(labels) > 1:
                values = "; ".join(f"{value} for {', '.join(named)}" for value, named in labels.items())
                notes.append(f"train.{key} differs: {values}.")
        return notes

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the result of each run, with the derived numbers of the table added."""
        return [run.result | self._derived(run) for group in self.groups for run in group.runs]

    def table_dicts(self) -> list[dict[str, Any]]:
        """Return each row as numbers: {"mean", "deviation"} of each over the seeds, or None."""
        rows = []
        for group in self.groups:
            derived = [self._derived(run) for run in group.runs]
            numbers = {key: group.of(key) for key in NUMBERS}
            numbers |= {key: spread(entries[key] for entries in derived) for key in derived[0]}
            spreads = {key: None if number is None else asdict(number) for key, number in numbers.items()}
            rows.append({"name": group.label, "method": group.text("method"), "seeds": len(group.runs), **spreads})
        return rows

    def _derived(self, run: RunRecord) -> dict[str, Any]:
        derived = {"macs_share": macs_share(run.result), "bytes_ratio": self._bytes_ratio(run)}
        if self.target is not None:
            derived |= {f"{what}_to_target": cost for what, cost in cost_of_target(run, self.target).items()}
        return derived

    def _bytes_ratio(self, run: RunRecord) -> float | None:
        first = self.groups[0].over(lambda run: total_bytes(run.result))
        own = total_bytes(run.result)
        return own / first.mean if own is not None and first is not None and first.mean else None

    def _has_perplexity(self) -> bool:
        return any(group.of("perplexity") is not None for group in self.groups)

    def _row(self, group: Group) -> list[str]:
        share = group.over(lambda run: macs_share(run.result))
        cells = [
            marked(group),
            group.text("method") or DASH,
            with_deviation(group.of("accuracy"), percent_text),
            mean_text(group.of("density"), percent_text),
            f"{mean_text(group.of('macs'), count_text)} ({mean_text(share, lambda s: percent_text(s, 0))})",
            mean_text(group.of("seconds_per_round"), seconds_text),
            mean_text(group.of("peak_bytes"), bytes_text),
            mean_text(group.of("bytes_down"), bytes_text),
            mean_text(group.of("bytes_up"), bytes_text),
            mean_text(group.over(self._bytes_ratio), ratio_text),
        ]
        if self._has_perplexity():
            cells.insert(3, with_deviation(group.of("perplexity"), lambda number: f"{number:.4g}"))
        return cells if self.target is None else cells + self._target_cells(group, self.target)

    def _target_cells(self, group: Group, target: float) -> list[str]:
        costs = [cost_of_target(run, target) for run in group.runs]
        reached = sum(cost["rounds"] is not None for cost in costs)
        if reached < len(costs):
            return [f"{DASH} ({reached} of {len(costs)} did)" if reached else DASH, DASH, DASH]
        texts: tuple[Callable[[float], str], ...] = (lambda number: f"{number:.3g}", bytes_text, seconds_text)
        cells = [with_deviation(spread(cost[what] for cost in costs), text) for what, text in zip(TARGET_COSTS, texts)]
        before = group.over(opening_accuracy)
        return cells if before is None else [f"{cells[0]} (from {percent_text(before.mean)})", *cells[1:]]


def mean_text(number: Spread | None, text: Callable[[float], str]) -> str:
    """Return the mean as `text` writes it."""
    return DASH if number is None else text(number.mean)


def with_deviation(number: Spread | None, text: Callable[[float], str]) -> str:
    """Return the mean, and where there are several runs the standard deviation after a plus-minus sign."""
    if number is None or number.deviation is None:
        return mean_text(number, text)
    return f"{text(number.mean)} \u00b1 {text(number.deviation)}"


def marked(group: Group) -> str:
    """Return the runs' name, with the number of seeds where there are several, marked where a run did not end."""
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    ends = [str(run.result.get("status", "unfinished")) for run in group.runs]
    unfinished = next((end for end in ends if end != "complete"), None)
    return f"{group.label}{seeds}" + (f" ({unfinished})" if unfinished else "")


def macs_share(result: dict[str, Any]) -> float | None:
    """Return the multiply-adds of a forward pass as a share of the dense model's."""
    macs, dense = result.get("macs"), result.get("dense_macs")
    return macs / dense if macs is not None and dense else None


def total_bytes(result: dict[str, Any]) -> int | None:
    """Return the bytes of a run in both directions."""
    down, up = result.get("bytes_down"), result.get("bytes_up")
    return None if down is None or up is None else down + up


def comparison_tables(comparison: Comparison, width: int) -> list[Table]:
    """Return the rich tables of runs side by side, a row a run, none wider than `width` columns where that can be.

    What does not fit beside the rest, the bytes and what a target took first, goes into a table of its own below.
    """
    heads, rows = comparison.columns(), comparison.rows()
    widths = [column_width(*cells) for cells in zip(heads, *rows)]
    blocks = stacked(widths, heads.index(FIRST_OF_BYTES), width)
    return [
        table_of([heads[at] for at in block], [[row[at] for at in block] for row in rows], [widths[at] for at in block])
        for block in blocks
    ]


def column_width(head: str, *cells: str) -> int:
    """Return how wide a column must be: no cell is broken, and the head between words only."""
    return max(map(len, (*head.split(), *cells)))


def stacked(widths: list[int], cut: int, width: int) -> list[list[int]]:
    """Return the columns of each table: all in one where they fit, else those before `cut` and those from there on.

    Each table begins with column 0, the name; what is too wide still goes on in a further one.
    """

    def needed(columns: list[int]) -> int:
        return sum(widths[at] + 3 for at in columns) + 1

    everything = list(range(len(widths)))
    if needed(everything) <= width:
        return [everything]
    blocks = []
    for part in (everything[1:cut], everything[cut:]):
        block = [0]
        for at in part:
            if len(block) > 1 and needed([*block, at]) > width:
                blocks.append(block)
                block = [0]
            block.append(at)
        blocks.append(block)
    return blocks


def table_of(header: list[str], rows: list[list[str]], widths: list[int]) -> Table:
    """Return a rich table of columns of these widths, words set to the left, numbers to the right."""
    from rich.table import Table

    table = Table(header_style="bold")
    for head, width in zip(header, widths):
        table.add_column(head, justify="left" if head in WORDS else "right", width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
