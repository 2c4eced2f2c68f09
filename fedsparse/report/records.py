"""What a run recorded: `rounds.jsonl` line by line, and `result.json`."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Round = dict[str, Any]


class RecordError(ValueError):
    """What is wrong with the records of a run: one sentence that names the file."""


@dataclass(frozen=True)
class RunRecord:
    """One run as it was recorded; `result` is that of `result.json`, or is made of the rounds where it is absent.

    settings: the configuration but for the seed, or what the result says of it where the configuration is absent.
    """

    folder: Path
    label: str
    result: dict[str, Any]
    rounds: list[Round]
    settings: dict[str, Any]

    def series(self, key: str) -> list[Any]:
        """Return the values of one key over the rounds; None where a round lacks it."""
        return [record.get(key) for record in self.rounds]

    def accuracies(self) -> list[tuple[int, float]]:
        """Return (position in the rounds, accuracy) of the rounds that tested the server's model."""
        return [(at, record["accuracy"]) for at, record in enumerate(self.rounds) if record.get("accuracy") is not None]


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """Return the runs of the folders; a folder of several runs, as `compare` writes it, gives all of them.

    Raises RecordError for a folder that holds no run.
    """
    runs = [read_run(folder) for given in folders for folder in run_folders(given)]
    return [replace(run, label=f"{run.label} ({run.folder})") if clashes(run, runs) else run for run in runs]


def clashes(run: RunRecord, runs: list[RunRecord]) -> bool:
    """Tell whether another run has the same name without being the same configuration under another seed."""
    seed = run.result.get("seed")
    return any(
        other is not run
        and other.label == run.label
        and (other.settings != run.settings or other.result.get("seed") == seed)
        for other in runs
    )


def run_folders(folder: Path) -> list[Path]:
    """Return the folder itself where it holds a run, else those of its folders that do, in the order of their start."""
    if not folder.is_dir():
        raise RecordError(f"{folder} is not a folder of a run")
    if is_run(folder):
        return [folder]
    inner = [child for child in folder.iterdir() if child.is_dir() and is_run(child)]
    if not inner:
        raise RecordError(f"{folder} holds neither result.json nor rounds.jsonl, so it is no run's folder")
    return sorted(inner, key=lambda child: (started(child), child.name))


def is_run(folder: Path) -> bool:
    """Tell whether the folder holds the records of a run."""
    return (folder / "result.json").is_file() or (folder / "rounds.jsonl").is_file()


def started(folder: Path) -> int:
    """Return when the oldest file of a folder was last written, in nanoseconds since 1970."""
    return min(entry.stat().st_mtime_ns for entry in folder.iterdir())


def read_run(folder: Path) -> RunRecord:
    """Return the records of one run's folder."""
    rounds = read_rounds(folder / "rounds.jsonl")
    result = read_result(folder / "result.json") or result_of(folder.name, rounds)
    return RunRecord(folder, str(result.get("name", folder.name)), result, rounds, settings_of(folder, result))


def settings_of(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run without its seed, or the names in its result where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {key: result.get(key) for key in ("method", "model", "dataset", "clients")}
    config = read_object(path)
    return {key: value for key, value in config.items() if key != "seed"}


def read_rounds(path: Path) -> list[Round]:
    """Return the records of `rounds.jsonl`; a last line that a killed run left unfinished is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rounds: list[Round] = []
    for number, line in enumerate(lines, start=1):
        try:
            rounds.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise RecordError(f"line {number} of {path} is not JSON") from None
    return rounds


def read_result(path: Path) -> dict[str, Any] | None:
    """Return `result.json`, or None where the run has not written it."""
    return read_object(path) if path.is_file() else None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecordError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} is JSON but not an object")
    return content


def result_of(name: str, rounds: list[Round], **known: Any) -> dict[str, Any]:
    """Return the result that the rounds so far amount to, with status "interrupted"; `known` adds and replaces keys."""
    accuracies = [record["accuracy"] for record in rounds if record.get("accuracy") is not None]
    seconds = [record["seconds"] for record in rounds]
    last = rounds[-1] if rounds else {}
    result = {
        "name": name,
        "rounds": len(rounds),
        "accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "density": last.get("density"),
        "macs": last.get("macs"),
        "seconds_per_round": statistics.median(seconds) if seconds else None,
        "peak_bytes": max((record["peak_bytes"] for record in rounds), default=None),
        "bytes_down": sum(record["bytes_down"] for record in rounds),
        "bytes_up": sum(record["bytes_up"] for record in rounds),
        "total_seconds": sum(seconds),
        "status": "interrupted",
    }
    return result | known
