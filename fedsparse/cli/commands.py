"""The commands and their options."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import fedsparse
from fedsparse.cli.errors import INTERRUPTED

app = typer.Typer(
    help="Federated learning with dynamic pruning in which the sparsity is real.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """How a result is printed on standard output."""

    table = "table"
    json = "json"


class Listed(StrEnum):
    """What can be listed."""

    methods = "methods"
    models = "models"
    datasets = "datasets"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration.")]
ConfigFiles = Annotated[
    list[Path], typer.Argument(metavar="CONFIG.toml...", help="Configurations, each of one method or of several.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Set a value of the configuration.")
]
Out = Annotated[Path | None, typer.Option("--out", help="A new or empty folder for the results [default: in runs/].")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replace the configuration's seed.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The folder of the data set's files.")]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Run that many consecutive seeds; the table has their means.")
]
Target = Annotated[
    float | None,
    typer.Option("--target", min=0.0, max=1.0, help="An accuracy; the table has what it took to reach it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Run on that many MPI ranks of this machine.")]
AsFormat = Annotated[Format, typer.Option("--format", help="How to print the result.")]


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"fedsparse {fedsparse.__version__}")
        raise typer.Exit


@app.callback()
def fedsparse_command(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning with dynamic pruning in which the sparsity is real."""


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    format: AsFormat = Format.table,
    ranks: Ranks = 1,
) -> int:
    """Run one configuration, in this process or on the ranks of an MPI job (`--ranks N`, or started by mpirun)."""
    from fedsparse.comm.mpi import world_rank, world_size
    from fedsparse.config import load

    checked = load(config, overrides or [], seed, data_dir)
    if ranks > 1 and world_size() == 1:
        from fedsparse.cli.ranks import start_on_ranks
        from fedsparse.config.experiment import experiment_of

        experiment_of(checked)
        start_on_ranks(ranks, config, options_again(overrides, out, seed, data_dir, quiet, format), checked.threads)
    if world_rank() > 0:
        from fedsparse.cli import launch
        from fedsparse.config.experiment import experiment_of

        launch.work(checked, experiment_of(checked))
        return 0
    from fedsparse.cli import launch
    from fedsparse.cli.folders import run_folder
    from fedsparse.config.experiment import experiment_of

    experiment = experiment_of(checked)
    folder = run_folder(out, checked.name, checked.seed)
    result = launch.execute(checked, experiment, folder, quiet)
    launch.draw([folder.path], folder.path, checked.name)
    launch.show_one(result, folder.path, format is Format.json)
    return 0 if result["status"] == "complete" else INTERRUPTED


def options_again(
    overrides: list[str] | None, out: Path | None, seed: int | None, data_dir: Path | None, quiet: bool, format: Format
) -> list[str]:
    """Return the options of `run` as they would be typed."""
    options = [word for override in overrides or [] for word in ("--set", override)]
    for name, value in (("--out", out), ("--seed", seed), ("--data-dir", data_dir)):
        options += [] if value is None else [name, str(value)]
    return [*options, *(["--quiet"] if quiet else []), "--format", format.value]


@app.command()
def compare(
    configs: ConfigFiles,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    seeds: Seeds = 1,
    target: Target = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    format: AsFormat = Format.table,
) -> int:
    """Run several methods side by side.

    They share the seeds, the data, the split and the sampled clients.
    """
    from fedsparse.cli import launch
    from fedsparse.cli.folders import comparison_folder

    runs = launch.plan(configs, overrides or [], seed, data_dir, seeds)
    experiments = launch.experiments_of(runs)
    folder = comparison_folder(out, configs)
    folders, complete = launch.run_all(runs, experiments, folder, quiet)
    launch.draw(folders, folder.path, folder.path.name, target)
    launch.show(folders, folder.path, folder.path.name, target, format is Format.json)
    return 0 if complete else INTERRUPTED


@app.command("list")
def list_command(
    what: Annotated[Listed, typer.Argument(help="What to list.")], format: AsFormat = Format.table
) -> None:
    """List methods, models or data sets."""
    from fedsparse.cli import listing

    listing.show(what.value, format is Format.json)


@app.command()
def doctor(format: AsFormat = Format.table) -> None:
    """Tell what is installed and what is missing."""
    from fedsparse import doctor as examination

    examination.show(format is Format.json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs or of comparisons.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write it [default: the run's folder, or that above all].")
    ] = None,
    target: Target = None,
) -> None:
    """Draw the report of runs again."""
    from fedsparse.cli.folders import created
    from fedsparse.report import read_runs, write_report

    records = read_runs(runs)
    folder = out or (runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.resolve() for run in runs])))
    page = write_report(records, created(folder, exist_ok=True).path, folder.resolve().name, target)
    typer.echo(f"report: {page}")
