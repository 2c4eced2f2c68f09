"""Watch a run of another process by the files in its folder."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import Any

from fedsparse.cli.errors import STOPPED, CommandError
from fedsparse.cli.folders import going_on
from fedsparse.cli.progress import Display, progress
from fedsparse.report.records import read_result, read_rounds

EVERY = 0.5


def watch(folder: Path, rounds: int, name: str) -> int:
    """Show a run until it ends; 0 where it is complete, else STOPPED: interrupted, or its process is gone."""
    with progress(name, rounds, quiet=False) as display:
        shown = 0
        while True:
            alive = is_running(folder)
            shown = show_new(folder, display, shown)
            result = read_result(folder / "result.json")
            if result is not None and result["status"] == "complete":
                return 0
            if not alive:
                raise CommandError(
                    f"the run in {folder} is not going on; it has {shown} rounds, and {going_on(folder)}",
                    STOPPED,
                )
            time.sleep(EVERY)


def show_new(folder: Path, display: Display, shown: int) -> int:
    """Show the rounds that were not shown yet, and what the run is at; how many rounds there are."""
    records = read_rounds(folder / "rounds.jsonl")
    for record in records[shown:]:
        display.round(record)
    status = read_status(folder / "progress.json")
    if status is not None:
        display.status(status)
    return len(records)


def read_status(path: Path) -> dict[str, Any] | None:
    """Return what a run last said that it is at, None where it said nothing yet."""
    return json.loads(path.read_text()) if path.exists() else None


def is_running(folder: Path) -> bool:
    """Tell whether a process holds the folder's lock."""
    lock = folder / ".lock"
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
