"""The commands and their options."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fedsparse
from fedsparse.cli.errors import FAILED, INTERRUPTED, CommandError
from fedsparse.cli.options import (
    AsFormat,
    ConfigFile,
    ConfigFiles,
    DataDir,
    Format,
    HostFile,
    Listed,
    Out,
    Overrides,
    Quiet,
    Ranks,
    RunDir,
    Seed,
    Seeds,
    Target,
)

if TYPE_CHECKING:
    from fedsparse.cli.folders import RunFolder

app = typer.Typer(
    help="Federated learning with dynamic pruning in which the sparsity is real.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
    if os.environ.get("FEDSPARSE_FAULT"):
        check_faults()


def check_faults() -> None:
    """Refuse an order to fail that cannot be read, before any work."""
    from fedsparse.federated import faults

    try:
        faults.planned()
    except ValueError as error:
        raise CommandError(str(error)) from None


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
    hostfile: HostFile = None,
) -> int:
    """Run one configuration, in this process or on the ranks of an MPI job (`--ranks N`, or started by mpirun)."""
    from fedsparse.cli import fitting
    from fedsparse.cli.folders import run_folder
    from fedsparse.comm.mpi import world_rank, world_size
    from fedsparse.config import load
    from fedsparse.config.experiment import experiment_of

    checked = load(config, overrides or [], seed, data_dir)
    checked, experiment = fitting.fit(checked, experiment_of(checked), quiet)
    if world_rank() > 0:
        return work(checked, experiment)
    folder = run_folder(out, checked.name, checked.seed)
    if ranks > 1 and world_size() == 1:
        from fedsparse.cli.ranks import options_again, run_on_ranks

        settings = [*(overrides or []), *fitting.again(checked)]
        options = options_again(settings, folder.path, seed, data_dir, quiet, format)
        return run_on_ranks(ranks, hostfile, ["run", str(config), *options], folder, checked.threads)
    return conduct(checked, experiment, folder, quiet, format)


@app.command()
def resume(
    folder: RunDir,
    rounds: Annotated[
        int | None, typer.Option("--from", min=0, help="Go on after that many rounds [default: the newest checkpoint].")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    format: AsFormat = Format.table,
    ranks: Ranks = 1,
    hostfile: HostFile = None,
) -> int:
    """Go on with a run that was interrupted or killed, from its last checkpoint, as if it had never stopped."""
    from fedsparse.cli import launch, showing
    from fedsparse.cli.folders import old_folder
    from fedsparse.comm.mpi import world_rank, world_size
    from fedsparse.config import reload
    from fedsparse.config.experiment import experiment_of
    from fedsparse.report.records import read_result

    found = old_folder(folder)
    checked = reload(folder / "config.json", data_dir)
    experiment = experiment_of(checked)
    if world_rank() > 0:
        return work(checked, experiment)
    result = read_result(folder / "result.json")
    if result is not None and result["status"] == "complete" and rounds is None:
        showing.show_one(result, folder, format is Format.json)
        return 0
    start = launch.checkpoint_of(checked, experiment, folder, rounds)
    if ranks > 1 and world_size() == 1:
        from fedsparse.cli.ranks import options_again, run_on_ranks

        options = ["resume", str(folder), *([] if rounds is None else ["--from", str(rounds)])]
        options += options_again(None, None, None, data_dir, quiet, format)
        return run_on_ranks(ranks, hostfile, options, found, checked.threads)
    return conduct(checked, experiment, found, quiet, format, start)


@app.command()
def watch(folder: RunDir) -> int:
    """Watch a run that goes on in another process."""
    from fedsparse.cli import watch as watching
    from fedsparse.cli.folders import old_folder
    from fedsparse.config import reload

    config = reload(old_folder(folder).path / "config.json")
    return watching.watch(folder, config.train.rounds, config.name)


def work(config: Any, experiment: Any) -> int:
    """Be a worker rank."""
    from fedsparse.cli import launch

    launch.work(config, experiment)
    return 0


def conduct(config: Any, experiment: Any, folder: RunFolder, quiet: bool, format: Format, start: Any = None) -> int:
    """Run into a folder, draw the report and show the result; the exit code."""
    from fedsparse.cli import launch, showing

    result = launch.execute(config, experiment, folder, quiet, start)
    showing.draw([folder.path], folder.path, config.name)
    showing.show_one(result, folder.path, format is Format.json)
    return 0 if result["status"] == "complete" else INTERRUPTED


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

    They share the seeds, the data, the split and the sampled clients. Given again with the --out of a comparison that
    was stopped, it goes on: complete runs are kept, the others resumed.
    """
    from fedsparse.cli import comparing, showing
    from fedsparse.cli.continuing import folder_of
    from fedsparse.cli.folders import going_on

    runs = comparing.plan(configs, overrides or [], seed, data_dir, seeds)
    runs, experiments = comparing.experiments_of(runs, quiet)
    if not quiet:
        comparing.tell_exceptions(runs, overrides or [])
    folder = folder_of(out, configs, {run.folder: run.config for run in runs})
    outcome = comparing.run_all(runs, experiments, folder, quiet)
    if outcome.folders:
        showing.draw(outcome.folders, folder.path, folder.path.name, target)
        showing.show(outcome.folders, folder.path, folder.path.name, target, format is Format.json)
    if outcome.failures:
        raise CommandError("; ".join(outcome.failures), FAILED)
    if not outcome.complete:
        again = going_on(outcome.folders[-1], f"the same command with --out {folder.path}")
        print(f"interrupted: {again}", file=sys.stderr)
        return INTERRUPTED
    return 0


@app.command()
def explain(
    config: ConfigFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time both on this machine first, and keep the times for later runs.")
    ] = False,
) -> None:
    """Tell, layer by layer, which passes run on sparse kernels and which on dense torch, and why."""
    import torch

    from fedsparse.cli.explanation import explanation
    from fedsparse.config import load
    from fedsparse.config.experiment import experiment_of

    checked = load(config, overrides or [], None, data_dir)
    torch.set_num_threads(checked.threads)
    typer.echo(explanation(experiment_of(checked), measure))


@app.command()
def profile(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder for the files, a run's perhaps [default: runs/CONFIG-profile]."),
    ] = None,
    data_dir: DataDir = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that are timed, and as many watched.")] = 5,
) -> None:
    """Show what one training step takes and keeps, layer by layer, beside the same step dense and under masks.

    Writes profile.json, which has all figures, and memory_of_a_step.png; `fedsparse report` draws the picture for a run
    whose folder has them.
    """
    import torch

    from fedsparse.cli.folders import written_folder
    from fedsparse.cli.profiling import show
    from fedsparse.config import load
    from fedsparse.config.experiment import experiment_of

    checked = load(config, overrides or [], None, data_dir)
    torch.set_num_threads(checked.threads)
    folder = out or Path("runs") / f"{checked.name}-profile"
    show(experiment_of(checked), steps, written_folder(folder), checked.threads)


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
    from fedsparse.cli.folders import written_folder
    from fedsparse.report import read_runs, write_report

    records = read_runs(runs)
    if len(runs) > 1 and out is None:
        above = Path(os.path.commonpath([run.resolve() for run in runs]))
        if (above / "report.html").exists():
            raise CommandError(f"{above} holds a report already, of other runs perhaps: give --out")
    folder = out or (runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.resolve() for run in runs])))
    page = write_report(records, written_folder(folder), folder.resolve().name, target)
    typer.echo(f"report: {page}")
