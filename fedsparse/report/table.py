"""The comparison of runs as rows of text, for the terminal and for the HTML page alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsparse.report.units import DASH, bytes_text, count_text, percent_text, ratio_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "run",
    "method",
    "accuracy",
    "density",
    "multiply-adds (of dense)",
    "a round",
    "peak memory",
    "bytes down",
    "bytes up",
    "bytes, to the first",
)


@dataclass(frozen=True)
class Comparison:
    """Results side by side; every number is read from the results, ratios are to the first of them."""

    results: list[dict[str, Any]]

    def bytes_ratio(self, result: dict[str, Any]) -> float | None:
        """Return a run's bytes in both directions as a ratio to those of the first run."""
        first = total_bytes(self.results[0])
        own = total_bytes(result)
        return own / first if own is not None and first else None

    def rows(self) -> list[list[str]]:
        """Return one row of text per run, in the order of COLUMNS."""
        return [
            [
                marked(result),
                str(result.get("method", DASH)),
                percent_text(result.get("accuracy")),
                percent_text(result.get("density")),
                f"{count_text(result.get('macs'))} ({percent_text(macs_share(result), 0)})",
                seconds_text(result.get("seconds_per_round")),
                bytes_text(result.get("peak_bytes")),
                bytes_text(result.get("bytes_down")),
                bytes_text(result.get("bytes_up")),
                ratio_text(self.bytes_ratio(result)),
            ]
            for result in self.results
        ]

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the results with the two derived numbers of the table added."""
        return [
            result | {"macs_share": macs_share(result), "bytes_ratio": self.bytes_ratio(result)}
            for result in self.results
        ]


def marked(result: dict[str, Any]) -> str:
    """Return a run's name, marked where the run did not end."""
    name = str(result.get("name", DASH))
    return name if result.get("status") == "complete" else f"{name} ({result.get('status', 'unfinished')})"


def macs_share(result: dict[str, Any]) -> float | None:
    """Return the multiply-adds of a forward pass as a share of the dense model's."""
    macs, dense = result.get("macs"), result.get("dense_macs")
    return macs / dense if macs is not None and dense else None


def total_bytes(result: dict[str, Any]) -> int | None:
    """Return the bytes of a run in both directions."""
    down, up = result.get("bytes_down"), result.get("bytes_up")
    return None if down is None or up is None else down + up


def comparison_table(results: list[dict[str, Any]], title: str, width: int) -> Table:
    """Return the rich table of runs side by side: a row a run, or a column a run where that is too wide."""
    rows = Comparison(results).rows()
    needed = sum(max(map(len, cells)) + 3 for cells in zip(COLUMNS, *rows)) + 1
    if needed <= width:
        return table_of(list(COLUMNS), rows, title, left=2)
    columns = list(zip(COLUMNS, *rows))
    return table_of(list(columns[0]), [list(cells) for cells in columns[1:]], title, left=1)


def table_of(header: list[str], rows: list[list[str]], title: str, left: int) -> Table:
    """Return a rich table whose first `left` columns are set to the left, the others to the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for at, column in enumerate(header):
        table.add_column(column, justify="left" if at < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def summary_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, measured value) for one run."""
    perplexity = [("perplexity", f"{result['perplexity']:.2f}")] if result.get("perplexity") is not None else []
    macs = f"{count_text(result.get('macs'))} a sample ({percent_text(macs_share(result))} of dense)"
    return [
        ("method", str(result.get("method", DASH))),
        ("model, data", f"{result.get('model', DASH)}, {result.get('dataset', DASH)}"),
        ("status", f"{result.get('status', 'unfinished')} after {result.get('rounds', 0)} rounds"),
        (
            "accuracy",
            f"{percent_text(result.get('accuracy'))} (best {percent_text(result.get('best_accuracy'))})",
        ),
        *perplexity,
        ("density", percent_text(result.get("density"))),
        ("multiply-adds", macs),
        ("a round", f"{seconds_text(result.get('seconds_per_round'))} (median)"),
        ("whole run", seconds_text(result.get("total_seconds"))),
        ("peak memory", bytes_text(result.get("peak_bytes"))),
        ("bytes down", bytes_text(result.get("bytes_down"))),
        ("bytes up", bytes_text(result.get("bytes_up"))),
    ]


def summary_table(result: dict[str, Any]) -> Table:
    """Return the rich table of one run."""
    from rich.table import Table

    table = Table(
        title=f"{result.get('name', DASH)}, seed {result.get('seed', DASH)}",
        show_header=False,
        title_justify="left",
    )
    for what, value in summary_rows(result):
        table.add_row(what, value)
    return table
