"""How CPU benchmarks say what they ran on, and where their rows go."""

import csv
import subprocess
from pathlib import Path
from typing import Any

import torch

from fedsparse.ops.load import compiled
from fedsparse.ops.times import processor

Row = dict[str, Any]


def header(what: str) -> str:
    """One line: what, hardware, versions, commit."""
    isa, threads = compiled()["instruction_set_chosen"], torch.get_num_threads()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = done.stdout.strip() or "no commit known"
    return f"{what}: {processor()}, {isa}, {threads} thread(s), torch {torch.__version__}, {commit}"


def write_csv(path: Path, rows: list[Row]) -> None:
    """Rows as a CSV file with the columns of all of them, after the header as a comment."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {header(path.stem)}\n")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows)
