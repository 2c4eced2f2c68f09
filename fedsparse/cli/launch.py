"""Carry out a run, or several side by side, from checked configurations to folders of records and a report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsparse.cli.errors import BAD_INPUT, DISK, FAILED, CommandError, disk_sentence
from fedsparse.cli.folders import RunFolder, inner_folder
from fedsparse.cli.progress import progress
from fedsparse.config import Config, ConfigError, load
from fedsparse.config.sentences import shown
from fedsparse.report import RecordError, read_runs, write_report
from fedsparse.report.records import read_rounds, result_of

Result = dict[str, Any]
# What configurations must share to be compared: the same images, split over the same clients by the same seed.
SHARED = ("seed", "data", "partition")


def load_all(paths: list[Path], overrides: list[str], seed: int | None, data_dir: Path | None) -> list[Config]:
    """Return the checked configurations of several files, fit to be compared; errors name the file."""
    configs = []
    for path in paths:
        with naming(path):
            configs.append(load(path, overrides, seed, data_dir))
    check_comparable(configs, paths)
    return configs


def experiments_of(configs: list[Config], paths: list[Path]) -> list[Any]:
    """Return the experiments of comparable configurations; they share one copy of the data."""
    from fedsparse.config.experiment import check_names, experiment_of, load_data

    experiments: list[Any] = []
    for config, path in zip(configs, paths):
        with naming(path):
            check_names(config)
    with naming(paths[0]):
        splits = load_data(configs[0])
    for config, path in zip(configs, paths):
        with naming(path):
            experiments.append(experiment_of(config, splits))
    return experiments


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before a sentence about its content."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def execute(config: Config, experiment: Any, folder: RunFolder, quiet: bool) -> Result:
    """Run an experiment into its folder and return its result, whose status tells whether it was interrupted.

    A method that refuses its settings before the first round leaves no folder behind.
    """
    import torch

    from fedsparse import federated
    from fedsparse.comm.mpi import world_size
    from fedsparse.federated.artefacts import write_json
    from fedsparse.federated.errors import RunError
    from fedsparse.federated.ranks import run_on_ranks

    torch.set_num_threads(config.threads)
    try:
        write_json(folder.path / "config.json", config.as_dict())
        with progress(config.name, config.train.rounds, quiet) as on_round:
            if world_size() == 1:
                return federated.run(experiment, folder.path, on_round)
            return run_on_ranks(experiment, folder.path, on_round, deadline=config.deadline) or {}
    except KeyboardInterrupt:
        result = result_of(config.name, read_rounds(folder.path / "rounds.jsonl"), **known(config))
        write_json(folder.path / "result.json", result)
        return result
    except RunError as error:
        if (folder.path / "rounds.jsonl").exists():
            raise RunError(f"{error}; its rounds so far are kept in {folder.path}") from None
        folder.discard()
        raise
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise CommandError(f"{disk_sentence(error, str(folder.path))}; its rounds so far are kept", FAILED) from None
    except ValueError as error:
        if (folder.path / "rounds.jsonl").exists():
            raise
        folder.discard()
        raise CommandError(f"method {config.method.name} cannot start: {error}", BAD_INPUT) from error


def work(config: Config, experiment: Any) -> None:
    """Be a worker rank of an MPI job: no folder, no progress, no report."""
    import torch

    from fedsparse.federated.ranks import run_on_ranks

    torch.set_num_threads(config.threads)
    run_on_ranks(experiment, deadline=config.deadline)


def known(config: Config) -> Result:
    """Return what is known of a run before it starts."""
    return {
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.data.name,
        "seed": config.seed,
    }


def check_comparable(configs: list[Config], paths: list[Path]) -> None:
    """Refuse to compare runs that differ in the seed, the data or the split, or that have one name."""
    first = configs[0].as_dict()
    for config, path in zip(configs[1:], paths[1:]):
        other = config.as_dict()
        for table in SHARED:
            if other[table] != first[table]:
                raise ConfigError(
                    f"{path}: {difference(table, other[table], first[table])} in {paths[0]}, and only "
                    "runs of one seed, one data set and one split can be compared"
                )
    for at, config in enumerate(configs):
        if config.name in [other.name for other in configs[:at]]:
            raise ConfigError(f"{paths[at]}: name is {config.name!r}, which another configuration has already")


def difference(table: str, here: Any, there: Any) -> str:
    """Return the first key at which two tables differ, with both values."""
    if not isinstance(here, dict):
        return f"{table} is {shown(here)} but {shown(there)}"
    key = next(key for key in here if here[key] != there[key])
    return f"{table}.{key} is {shown(here[key])} but {shown(there[key])}"


def run_all(configs: list[Config], experiments: list[Any], outer: RunFolder, quiet: bool) -> list[Result]:
    """Run one experiment after the other, each into a folder of its name; stop after one that was interrupted."""
    results: list[Result] = []
    for config, experiment in zip(configs, experiments):
        results.append(execute(config, experiment, inner_folder(outer, config.name), quiet))
        if results[-1]["status"] != "complete":
            break
    return results


def draw(folder: Path, title: str) -> Path | None:
    """Write the report of a run's or a comparison's folder; None where not a round was recorded."""
    try:
        return write_report(read_runs([folder]), folder, title)
    except RecordError:
        return None


def show(results: list[Result], folder: Path, title: str, as_json: bool) -> None:
    """Print results on standard output: JSON, or a table and where the files are."""
    from fedsparse.report.table import Comparison

    if as_json:
        rows = Comparison(results).as_dicts()
        print(json.dumps({"folder": str(folder), "runs": rows}, indent=2))
        return
    from rich.console import Console

    from fedsparse.report.table import comparison_table

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(comparison_table(results, title, console.width))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def show_one(result: Result, folder: Path, as_json: bool) -> None:
    """Print one run's result on standard output: JSON, or a table and where the files are."""
    if as_json:
        print(json.dumps(result | {"folder": str(folder)}, indent=2))
        return
    from rich.console import Console

    from fedsparse.report.table import summary_table

    console = Console()
    console.print(summary_table(result))
    console.print(f"records and report: {folder}", highlight=False, soft_wrap=True)
