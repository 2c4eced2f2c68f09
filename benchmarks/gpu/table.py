"""The one table that gpu_check prints, and the files that it leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .facts import Facts
from .rows import MEASURED, Row

_WIDTHS = (56, 24, 22, 8, 6)
_HEADS = ("case", "median ms", "rate", "peak MB", "x")
_COLUMNS = ("section", "case", "status", "pass", "median_ms", "p10_ms", "p90_ms", "repeats", "error", "rate", "unit")


def text(title: str, headings: dict[str, str], rows: Sequence[Row]) -> str:
    """The table: a heading for each section, a line for each row; "x" is the speed-up over what `versus` names."""
    lines = [title, _line(_HEADS)]
    for name, heading in headings.items():
        mine = [row for row in rows if row.section == name]
        if mine:
            lines += [f"-- {heading}", *(_row(row) for row in mine)]
    lines.append(
        "x: times faster than the masked eager step, the plain NCHW layer, or the dense product of the same size."
    )
    return "\n".join(lines)


def _row(row: Row) -> str:
    if row.status != MEASURED:
        return f"{row.case:<{_WIDTHS[0]}} {row.status}: {row.note}"
    times = " / ".join(f"{time['median']:.3g}" for time in row.times.values())
    rate = "" if row.rate is None else f"{row.rate:.4g} {row.unit}"
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
    speedup = "" if row.speedup is None else f"{row.speedup:.2f}"
    return _line((row.case, times, rate, peak, speedup))


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def write(out: Path, facts: Facts, rows: Sequence[Row], table: str) -> None:
    """results.json (facts and rows), results.csv (a line for each pass) and table.txt in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    stored = {"facts": facts, "rows": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(stored, indent=1) + "\n")
    (out / "table.txt").write_text(table + "\n")
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, "peak_bytes", "versus", "speedup", "note"])
        for row in rows:
            writer.writerows(_csv_lines(row))


def _csv_lines(row: Row) -> list[list[object]]:
    head = [row.section, row.case, row.status]
    tail = [row.error, row.rate, row.unit, row.peak_bytes, row.versus, row.speedup, row.note]
    if not row.times:
        return [[*head, "", "", "", "", "", *tail]]
    return [
        [*head, name, time["median"], time["low"], time["high"], time["repeats"], *tail]
        for name, time in row.times.items()
    ]
