"""Several runs side by side: planned and held against each other, then carried out one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsparse.cli.continuing import is_complete, run_folder_in
from fedsparse.cli.fitting import fit
from fedsparse.cli.folders import RunFolder, locked
from fedsparse.cli.launch import checkpoint_of, execute
from fedsparse.config import Config, ConfigError, load_several
from fedsparse.config.load import override_value
from fedsparse.config.sentences import shown
from fedsparse.federated.errors import RunError, StoppedError


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


def experiments_of(runs: list[Planned], quiet: bool) -> tuple[list[Planned], list[Any]]:
    """Return comparable runs, with densities that fit where they ask for it, and their experiments, on shared data."""
    from fedsparse.config.experiment import check_names, experiment_of, load_data

    ready: list[Planned] = []
    experiments: list[Any] = []
    for run in runs:
        with naming(run.path):
            check_names(run.config)
    with naming(runs[0].path):
        splits = load_data(runs[0].config)
    for run in runs:
        with naming(run.path):
            config, experiment = fit(run.config, experiment_of(run.config, splits), quiet)
        ready.append(replace(run, config=config))
        experiments.append(experiment)
    return ready, experiments


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before a sentence about its content."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


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
