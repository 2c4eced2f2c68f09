"""Reports: from the records of one or several runs to PNG figures and a single-file HTML page."""

from __future__ import annotations

from pathlib import Path

from fedsparse.report.records import RecordError, RunRecord, read_runs

__all__ = ["RecordError", "RunRecord", "read_runs", "write_report"]


def write_report(runs: list[RunRecord], folder: Path, title: str, target: float | None = None) -> Path:
    """Write `report.html`, the figures' PNGs and for several runs `comparison.md` into the folder; return the page.

    target: an accuracy; the table says what it took to reach it. Runs that differ in the seed alone are one row.
    Raises RecordError where the runs hold no round to draw, and OSError where the folder cannot be written.
    """
    if not any(run.rounds for run in runs):
        raise RecordError(f"no round is recorded in {', '.join(str(run.folder) for run in runs)}")
    from fedsparse.federated.artefacts import write_atomic
    from fedsparse.report.page import figures_of, page_of
    from fedsparse.report.table import Comparison

    comparison = Comparison(runs, target)
    figures = figures_of(runs)
    for name, data in figures.items():
        write_atomic(folder / f"{name}.png", data)
    page = folder / "report.html"
    write_atomic(page, page_of(runs, comparison, figures, title).encode("utf-8"))
    if len(runs) > 1:
        write_atomic(folder / "comparison.md", comparison.markdown().encode("utf-8"))
    return page
