"""Carry out a run, from a checked configuration to a folder of records."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fedsparse.cli.errors import BAD_INPUT, DISK, FAILED, CommandError, disk_sentence
from fedsparse.cli.folders import RunFolder, going_on, locked
from fedsparse.cli.progress import progress
from fedsparse.cli.sinks import recording
from fedsparse.config import Config
from fedsparse.federated.checkpoint import CheckpointError
from fedsparse.federated.errors import RunError, StoppedError
from fedsparse.report.records import read_rounds, result_of

Result = dict[str, Any]


def execute(config: Config, experiment: Any, folder: RunFolder, quiet: bool, start: Any = None) -> Result:
    """Run an experiment into its folder and return its result, whose status tells whether it was interrupted.

    `start` is the checkpoint that it goes on from. A method that refuses its settings before the first round leaves no
    folder behind.
    """
    import torch

    torch.set_num_threads(config.threads)
    try:
        with locked(folder.path), interrupted_by_sigterm(), exits_raised():
            return carry_out(config, experiment, folder, quiet, start)
    except RunError as error:
        if not began(folder.path):
            folder.discard()
            raise
        again = f"; {going_on(folder.path)}" if isinstance(error, StoppedError) else ""
        raise type(error)(f"{error}; its rounds so far are kept in {folder.path}{again}") from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise CommandError(
            f"{disk_sentence(error, str(folder.path))}; its rounds so far are kept, and {going_on(folder.path)}",
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
        raise StoppedError(f"the run's own code called exit({left.code})") from left


def began(folder: Path) -> bool:
    """Tell whether a run has something to keep: a finished round, or the checkpoint of what comes before the first."""
    return (folder / "rounds.jsonl").exists() or any((folder / "checkpoints").glob("*.json"))


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


@contextmanager
def exits_raised() -> Iterator[None]:
    """Have `os._exit`, called by code of the run in this process, raise SystemExit like `sys.exit`.

    It would end the process with any code, 0 perhaps, and no result. Processes forked meanwhile leave as they like.
    """
    leave, here = os._exit, os.getpid()

    def raising(status: int) -> NoReturn:
        if os.getpid() != here:
            leave(status)
        raise SystemExit(status)

    os._exit = raising
    try:
        yield
    finally:
        os._exit = leave


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
    with exits_raised():
        run_on_ranks(experiment)


def known(config: Config) -> Result:
    """Return what is known of a run before it starts."""
    return {
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.data.name,
        "seed": config.seed,
    }
