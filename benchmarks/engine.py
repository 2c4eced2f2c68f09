"""What a round of the engine costs, beside pfl-research and Flower: `python -m benchmarks.engine [TASK] [--csv DIR]`.

Three tasks (`benchmarks/rivals/tasks.py`), the same torch models, random data and one thread everywhere; FedAvg, one
local epoch of plain SGD. Ours encodes, counts, decodes and judges every message; the rivals pass arrays. The rivals run
in an environment of their own, `~/.cache/fedsparse-rivals` (FEDSPARSE_RIVALS), made at the first call, with the torch
that runs this benchmark. Flower's CPU seconds are those of its process tree, Ray's processes included. A rival that
cannot run, or has not ended in ENGINE_LIMIT seconds (600), is "not measured", with the reason. Of the rounds after one
of warm-up (ENGINE_ROUNDS and ENGINE_WARM_UP set how many) the cheapest counts, for every engine: what others do on the
machine at the time is not the engine's. With `--repeat N` the engines run in turn N times, since two processes that do
the same may differ by a fifth: the table has the cheapest and the dearest of an engine's runs. `--pair` has pfl, this
library and the training alone do a round each in turn in one process, which compares them best.

Without the rivals: `python -m benchmarks.engine --engine plain --engine dense --engine sparse`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import header, write_csv
from benchmarks.rivals.tasks import TASKS, WARM_UP, Clock, Task, build, images, tree
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Training
from fedsparse.methods import FedAvg

RIVALS = Path(__file__).parent / "rivals"
PACKAGES = {"pfl": "pfl[pytorch]>=0.6", "flower": "flwr[simulation]"}
LIMIT = float(os.environ.get("ENGINE_LIMIT", "600"))
"""Seconds that a rival may take for a task, its start included."""
ENGINES = ("plain", "dense", "sparse", *PACKAGES)
"""The training alone; this library dense and at density 0.1 (not linear, whose only layer is the last); the rivals."""


@dataclass(frozen=True)
class Row:
    """A measured engine; or, with a reason, one that was not. wall, cpu: seconds of the cheapest round; of several runs
    of the cheapest one, and `dearest` is the cpu of the dearest.
    """

    engine: str
    version: str = ""
    wall: float = float("nan")
    cpu: float = float("nan")
    dearest: float = float("nan")
    reason: str = ""


def loop_of(task: Task, density: float) -> Loop:
    """This library's loop of a task, opened."""
    x, y = images(task)
    channels = (0.0,) * task.shape[0], (1.0,) * task.shape[0]
    data = Dataset("random", x, y, task.classes, *channels)
    test = replace(data, images=x[:10], labels=y[:10])
    parts = list(np.arange(len(y)).reshape(task.clients, task.samples))
    rounds = task.rounds + WARM_UP
    training = Training(rounds, task.per_round, 1, task.batch, task.lr, momentum=0.0, eval_every=rounds)
    loop = Loop(Experiment(build(task), FedAvg(density=density), data, test, parts, training))
    loop.open()
    return loop


def ours(task: Task, density: float) -> Row:
    """Seconds of a round of this library in one process."""
    loop = loop_of(task, density)
    clock = Clock()
    for t in range(task.rounds + WARM_UP):
        loop.round(t)
        clock.mark()
    name = "fedsparse, dense" if density == 1 else f"fedsparse, density {density:g}"
    return _row(name, "", clock.rounds())


def rival(name: str, task: str) -> Row:
    """A task in another engine, in its own environment and process."""
    try:
        said: dict[str, Any] = json.loads(output([str(environment(name)), f"{name}_run.py", task]).splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "it ended without a word").strip().splitlines()[-1]
        return Row(name, reason=f"exit code {error.returncode}: {last}")
    except subprocess.TimeoutExpired:
        return Row(name, reason=f"it did not end in {LIMIT:g} s and was stopped")
    except (OSError, IndexError, json.JSONDecodeError) as error:
        return Row(name, reason=f"{type(error).__name__}: {error}".splitlines()[0])
    if said["torch"] != torch.__version__:
        return Row(name, said["version"], reason=f"it has torch {said['torch']}, not {torch.__version__}")
    return _row(name, said["version"], said["rounds"])


def output(command: list[str], **environment: str) -> str:
    """What a command prints; after LIMIT seconds it and its descendants, which outlive it in Ray, are ended."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=RIVALS, env=os.environ | environment
    ) as process:
        try:
            said, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            for pid in tree(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said, errors)
    return said


def environment(name: str) -> Path:
    """The Python of the rivals' environment, which is made, or completed by a rival's packages, where it is missing."""
    folder = Path(os.environ.get("FEDSPARSE_RIVALS", Path.home() / ".cache" / "fedsparse-rivals"))
    python, done = folder / "bin" / "python", folder / f"has-{name}"
    if not python.exists():
        print(f"making {folder} (0.5 GB, some minutes, once)", file=sys.stderr)
        venv.create(folder, with_pip=True)
        site = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
        )
        # The torch of this interpreter, after whatever the rivals bring of their own.
        (Path(site.strip()) / "zz_torch.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    if not done.exists():
        # Not constraints.txt: pfl 0.6 wants an older wheel than it pins.
        pins = folder / "pins.txt"
        pins.write_text("".join(f"{package}=={version(package)}\n" for package in ("torch", "numpy")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", str(pins), PACKAGES[name]], check=True)
        done.touch()
    return python


def _row(engine: str, version: str, rounds: list[tuple[float, float]]) -> Row:
    wall, cpu = (min(column) for column in zip(*rounds))
    return Row(engine, version, wall, cpu, cpu)


def best(runs: list[Row]) -> Row:
    """An engine's runs as one row; those that failed do not count where another did not."""
    measured = [row for row in runs if not row.reason]
    if not measured:
        return runs[0]
    cheapest = min(measured, key=lambda row: row.cpu)
    return replace(cheapest, dearest=max(row.cpu for row in measured))


def show(name: str, task: Task, rows: list[Row]) -> None:
    """Print a task's table."""
    print(
        f"\n{name}: {task.clients} clients x {task.samples} samples, {task.per_round} a round, batches of {task.batch}"
    )
    print("| engine | CPU s a round | wall s a round | CPU ms a client |\n| --- | --- | --- | --- |")
    for row in rows:
        if row.reason:
            print(f"| {row.engine} {row.version} | not measured: {row.reason} | | |")
        else:
            low, high = (1000 * cpu / task.per_round for cpu in (row.cpu, row.dearest))
            each = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
            print(f"| {row.engine} {row.version} | {row.cpu:.3f} | {row.wall:.3f} | {each} |", flush=True)


def plain_round(task: Task) -> Callable[[], None]:
    """A round of the training alone: one model, one optimizer, the same batches; what others take more is overhead."""
    x, y = images(task)
    model = build(task)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)

    def go() -> None:
        for client in range(task.per_round):
            part = slice(client * task.samples, (client + 1) * task.samples)
            for bx, by in zip(x[part].split(task.batch), y[part].split(task.batch)):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(bx), by).backward()
                optimizer.step()

    return go


def plain(task: Task) -> Row:
    """The training alone."""
    go = plain_round(task)
    clock = Clock()
    for _ in range(task.rounds + WARM_UP):
        go()
        clock.mark()
    return _row("plain torch, training alone", "", clock.rounds())


def pair(name: str, task: Task) -> None:
    """Print medians of rounds in turn in one process, and how often ours was cheaper than pfl's beside it."""
    command = [str(environment("pfl")), "pair_run.py", name]
    found: dict[str, list[float]] = json.loads(output(command, PYTHONPATH=str(RIVALS.parent.parent)).splitlines()[-1])
    print(
        f"\n{name}, rounds in turn in one process\n| engine | CPU ms a client, median | cheapest |\n| --- | --- | --- |"
    )
    for engine, seconds in found.items():
        each = 1000 / task.per_round
        print(f"| {engine} | {each * statistics.median(seconds):.2f} | {each * min(seconds):.2f} |")
    ratios = [theirs / mine for theirs, mine in zip(found["pfl"], found["ours"], strict=True)]
    cheaper = sum(ratio > 1 for ratio in ratios)
    print(f"pfl over ours: median {statistics.median(ratios):.3f}; ours cheaper in {cheaper} of {len(ratios)} rounds")


def measure(engine: str, name: str) -> Row:
    """One of `ENGINES` on one of `TASKS`."""
    if engine in PACKAGES:
        return rival(engine, name)
    return plain(TASKS[name]) if engine == "plain" else ours(TASKS[name], 0.1 if engine == "sparse" else 1.0)


def merge(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV; those of other engines that the file has stay, so that a table may be measured in parts."""
    table = {row.engine: asdict(row) for row in rows}
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        table = {row["engine"]: row for row in csv.DictReader(lines)} | table
    write_csv(path, list(table.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="all by default")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="all by default")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each engine, the engines in turn (1)")
    parser.add_argument("--pair", action="store_true", help="only ours, pfl and the training alone, in one process")
    parser.add_argument("--csv", type=Path, help="the folder for TASK.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(header("engine"))
    for name in options.tasks or TASKS:
        if options.pair:
            pair(name, TASKS[name])
            continue
        engines = [engine for engine in options.engine or ENGINES if (engine, name) != ("sparse", "linear")]
        runs = [[measure(engine, name) for engine in engines] for _ in range(options.repeat)]
        rows = [best(list(runs_of_one)) for runs_of_one in zip(*runs)]
        show(name, TASKS[name], rows)
        if options.csv:
            merge(options.csv / f"{name}.csv", rows)


if __name__ == "__main__":
    main()
