"""Carry out a run, or several side by side, from checked configurations to folders of records and a report."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsparse.cli.continuing import is_complete, run_folder_in
from fedsparse.cli.errors import BAD_INPUT, DISK, FAILED, CommandError, disk_sentence
from fedsparse.cli.folders import RunFolder, locked
from fedsparse.cli.progress import progress
from fedsparse.cli.sinks import recording
from fedsparse.config import Config, ConfigError, load_several
from fedsparse.config.load import override_value
from fedsparse.config.sentences import shown
from fedsparse.federated.checkpoint import CheckpointError
from fedsparse.federated.errors import RunError, StoppedError
from fedsparse.report import RecordError, read_runs, write_report
from fedsparse.report.records import read_rounds, result_of

Result = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run of a comparison: its configuration, the file that it comes from, the name of its folder."""

    config: Config
    path: Path
    folder: str


def plan(paths: list[Path], overrides: list[str], seed: int | None, data_dir: Path | None, seeds: int) -> list[Planned]:
    """Return the runs of a comparison, seed after seed, fit to be compared; errors name the file.

    The seeds are `seeds` consecutive ones from that of the configurations, or from `seed`, on.
    """
    runs = []
    for path in paths:
        with naming(path):
            configs = load_several(path, overrides, seed, data_dir)
        runs += [Planned(config, path, config.name) for config in configs]
    check_comparable(runs)
    if seeds == 1:
        return runs
    first = runs[0].config.seed
    return [
        Planned(run.config.model_copy(update={"seed": s}), run.path, f"{run.config.name}-seed{s}")
        for s in range(first, first + seeds)
        for run in runs
    ]


def tell_exceptions(runs: list[Planned], overrides: list[str]) -> None:
    """Tell for which runs an override of all methods does not hold, since their tables do not have its key."""
    for override in overrides:
        key, _, value = override.partition("=")
        table, _, setting = key.strip().partition(".")
        if table == "method" and "." not in setting:
            wanted = override_value(value.strip())
            without = dict.fromkeys(
                run.config.name for run in runs if getattr(run.config.method, setting, None) != wanted
            )
            if without:
                print(f"{override} does not hold for {', '.join(without)}, which do not set it", file=sys.stderr)


def experiments_of(runs: list[Planned]) -> list[Any]:
    """Return the experiments of comparable runs; they share one copy of the data."""
    from fedsparse.config.experiment import check_names, experiment_of, load_data

    experiments: list[Any] = []
    for run in runs:
        with naming(run.path):
            check_names(run.config)
    with naming(runs[0].path):
        splits = load_data(runs[0].config)
    for run in runs:
        with naming(run.path):
            experiments.append(experiment_of(run.config, splits))
    return experiments


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before a sentence about its content."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def execute(config: Config, experiment: Any, folder: RunFolder, quiet: bool, start: Any = None) -> Result:
    """Run an experiment into its folder and return its result, whose status tells whether it was interrupted.

    `start` is the checkpoint that it goes on from. A method that refuses its settings before the first round leaves no
    folder behind.
    """
    import torch

    torch.set_num_threads(config.threads)
    try:
        with locked(folder.path), interrupted_by_sigterm():
            return carry_out(config, experiment, folder, quiet, start)
    except RunError as error:
        if not began(folder.path):
            folder.discard()
            raise
        again = f"; `fedsparse resume {folder.path}` goes on" if isinstance(error, StoppedError) else ""
        raise type(error)(f"{error}; its rounds so far are kept in {folder.path}{again}") from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise CommandError(
            f"{disk_sentence(error, str(folder.path))}; its rounds so far are kept, and "
            f"`fedsparse resume {folder.path}` goes on",
            FAILED,
        ) from None
    except ValueError as error:
        if began(folder.path) or isinstance(error, CheckpointError):
            raise
        folder.discard()
        raise CommandError(f"method {config.method.name} cannot start: {error}", BAD_INPUT) from error


def carry_out(config: Config, experiment: Any, folder: RunFolder, quiet: bool, start: Any) -> Result:
    """Run in this process or as rank 0, showing progress; an interruption before the first round has a result too."""
    from fedsparse import federated
    from fedsparse.comm.mpi import world_size
    from fedsparse.federated.artefacts import write_json
    from fedsparse.federated.ranks import run_on_ranks

    try:
        if not folder.old:
            write_json(folder.path / "config.json", config.as_dict())
        with (
            progress(config.name, config.train.rounds, quiet) as shown,
            recording(config, folder.path, shown.round) as on_round,
        ):
            if world_size() == 1:
                return federated.run(experiment, folder.path, on_round, start=start, on_status=shown.status)
            return run_on_ranks(experiment, folder.path, on_round, start, shown.status) or {}
    except KeyboardInterrupt:
        result = result_of(config.name, read_rounds(folder.path / "rounds.jsonl"), **known(config))
        write_json(folder.path / "result.json", result)
        return result
    except SystemExit as left:  # else the command would end with that code, 0 perhaps, and no result
        raise StoppedError(f"the run's own code called sys.exit({left.code})") from left


def began(folder: Path) -> bool:
    """Tell whether a run has finished a round, so that there is something to keep."""
    return (folder / "rounds.jsonl").exists()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM, as batch systems send it, end a run like Ctrl-C: with its result so far."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def checkpoint_of(config: Config, experiment: Any, folder: Path, rounds: int | None) -> Any:
    """Return the checkpoint to go on from, None where the run never began; CheckpointError for what does not fit."""
    import torch

    from fedsparse.federated.journal import resumable

    torch.set_num_threads(config.threads)
    return resumable(folder, experiment, rounds)


def work(config: Config, experiment: Any) -> None:
    """Be a worker rank of an MPI job: no folder, no progress, no report."""
    import torch

    from fedsparse.federated.ranks import run_on_ranks

    torch.set_num_threads(config.threads)
    run_on_ranks(experiment)


def known(config: Config) -> Result:
    """Return what is known of a run before it starts."""
    return {
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.data.name,
        "seed": config.seed,
    }


def check_comparable(runs: list[Planned]) -> None:
    """Refuse to compare runs that differ in the seed, the data, the split or who is sampled, or have one name."""
    first = shared_of(runs[0].config)
    for run in runs[1:]:
        other = shared_of(run.config)
        for table in first:
            if other[table] != first[table]:
                raise ConfigError(
                    f"{run.path}: {difference(table, other[table], first[table])} in {runs[0].path}, and only "
                    "runs of one seed, one data set, one split and the same sampled clients can be compared"
                )
    for at, run in enumerate(runs):
        if run.config.name in [other.config.name for other in runs[:at]]:
            raise ConfigError(f"{run.path}: name is {run.config.name!r}, which another run has already")


def shared_of(config: Config) -> dict[str, Any]:
    """Return what configurations must share to be compared."""
    tables = config.as_dict()
    shared = {table: tables[table] for table in ("seed", "data", "partition")}
    return shared | {"train": {"clients_per_round": config.train.clients_per_round}}


def difference(table: str, here: Any, there: Any) -> str:
    """Return the first key at which two tables differ, with both values."""
    if not isinstance(here, dict):
        return f"{table} is {shown(here)} but {shown(there)}"
    key = next(key for key in here if here[key] != there[key])
    return f"{table}.{key} is {shown(here[key])} but {shown(there[key])}"


@dataclass
class Outcome:
    """What became of the runs of a comparison: folders with records, sentences on runs that failed, whether all ran."""

    folders: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = True


def run_all(runs: list[Planned], experiments: list[Any], outer: RunFolder, quiet: bool) -> Outcome:
    """Run one experiment after the other, each into its folder.

    In a folder of this comparison that was stopped, complete runs stay as they are and others go on from their last
    checkpoint. A run that fails, as by diverging, is noted and the next goes on; one that was interrupted is the last.
    Where none left a record, the outer folder is removed.
    """
    outcome = Outcome()
    with locked(outer.path):
        try:
            for run, experiment in zip(runs, experiments):
                run_one(run, experiment, outer, quiet, outcome)
                if not outcome.complete:
                    break
        finally:
            if not any(child.is_dir() for child in outer.path.iterdir()):
                outer.discard()
    return outcome


def run_one(run: Planned, experiment: Any, outer: RunFolder, quiet: bool, outcome: Outcome) -> None:
    """Run one experiment of a comparison, or the rest of it, and note what became of it."""
    folder = run_folder_in(outer, run.folder)
    if is_complete(folder.path):
        outcome.folders.append(folder.path)
        if not quiet:
            print(f"{run.folder}: complete already", file=sys.stderr)
        return
    try:
        start = checkpoint_of(run.config, experiment, folder.path, None) if folder.old else None
        outcome.complete = execute(run.config, experiment, folder, quiet, start)["status"] == "complete"
    except StoppedError:
        raise
    except RunError as error:
        outcome.failures.append(f"{run.folder}: {error}")
    if folder.path.exists():
        outcome.folders.append(folder.path)


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
