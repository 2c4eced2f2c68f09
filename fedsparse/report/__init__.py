"""Reports: from the records of one or several runs to PNG figures and a single-file HTML page."""

from __future__ import annotations

from pathlib import Path

from fedsparse.report.records import RecordError, RunRecord, read_runs

__all__ = ["RecordError", "RunRecord", "read_runs", "write_report"]


def write_report(runs: list[RunRecord], folder: Path, title: str) -> Path:
    """Write `report.html` and the figures' PNGs for the runs into the folder; return the page's path.

    Raises RecordError where the runs hold no round to draw, and OSError where the folder cannot be written.
    """
    if not any(run.rounds for run in runs):
        raise RecordError(f"no round is recorded in {', '.join(str(run.folder) for run in runs)}")
    from fedsparse.federated.artefacts import write_atomic
    from fedsparse.report.page import figures_of, page_of

    figures = figures_of(runs)
    for name, data in figures.items():
        write_atomic(folder / f"{name}.png", data)
    page = folder / "report.html"
    write_atomic(page, page_of(runs, figures, title).encode("utf-8"))
    return page
