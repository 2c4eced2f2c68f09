"""What is shown of runs that are over: reports in their folders, tables or JSON on standard output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedsparse.cli.launch import Result
from fedsparse.report import RecordError, read_runs, write_report


def draw(runs: list[Path], folder: Path, title: str, target: float | None = None) -> Path | None:
    """Write the report of one run or several into the folder; None where not a round was recorded."""
    try:
        return write_report(read_runs(runs), folder, title, target)
    except RecordError:
        return None


def show(runs: list[Path], folder: Path, title: str, target: float | None, as_json: bool) -> None:
    """Print a comparison on standard output: JSON, or tables as wide as the terminal and where the files are.

    Where there is no terminal, and COLUMNS does not say how wide it would be, tables are 100 columns wide at most.
    """
    from fedsparse.report.table import Comparison, comparison_tables

    comparison = Comparison(read_runs(runs), target)
    if as_json:
        content = {"folder": str(folder), "runs": comparison.as_dicts(), "table": comparison.table_dicts()}
        print(json.dumps(content, indent=2))
        return
    from rich.console import Console

    console = Console(width=shutil.get_terminal_size((100, 24)).columns)
    console.print(title, style="bold", highlight=False)
    for table in comparison_tables(comparison, console.width):
        console.print(table)
    for note in comparison.notes():
        console.print(note, highlight=False)
    for what, name in (("table", "comparison.md"), ("report", "report.html")):
        if (folder / name).exists():
            console.print(f"{what}: {folder / name}", highlight=False, soft_wrap=True)


def show_one(result: Result, folder: Path, as_json: bool) -> None:
    """Print one run's result on standard output: JSON, or a table and where the files are."""
    if as_json:
        print(json.dumps(result | {"folder": str(folder)}, indent=2))
        return
    from rich.console import Console

    from fedsparse.comm.mpi import world_size
    from fedsparse.report.summary import summary_table

    # mpirun gives rank 0 a terminal of its own, whatever its own output goes to.
    console = Console(force_terminal=False if world_size() > 1 else None)
    console.print(summary_table(result))
    console.print(f"records and report: {folder}", highlight=False, soft_wrap=True)
