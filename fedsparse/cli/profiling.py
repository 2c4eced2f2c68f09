"""The command `profile`: measures, prints tables, writes profile.json and the picture."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from fedsparse.cli.errors import CommandError
from fedsparse.federated import Experiment, Loop
from fedsparse.federated.artefacts import write_atomic
from fedsparse.report.adjustment import adjustment
from fedsparse.report.memory_plot import PROFILE, memory_picture, read_profile
from fedsparse.report.profile import profiles
from fedsparse.report.profile_table import adjustment_table, bytes_table, summary_table, time_table
from fedsparse.report.style import png, styled


def show(experiment: Experiment, steps: int, folder: Path, threads: int) -> None:
    """Profile a step and print what it costs; the files go to `folder`, in place of earlier ones."""
    try:
        loop = Loop(experiment)
        loop.open()
        found, adjusting = profiles(experiment, loop, steps), adjustment(experiment, loop)
    except ValueError as error:
        raise CommandError(str(error)) from None
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(bytes_table(found))
    console.print(time_table(found))
    console.print(summary_table(found))
    if adjusting is not None:
        console.print(adjustment_table(adjusting))
    facts = {"torch": torch.__version__, "threads": threads, "batch": experiment.training.batch_size}
    curves = [asdict(step) for step in found]
    if adjusting is not None:
        curves.append({**asdict(adjusting), "peak": adjusting.peak, "seconds": adjusting.seconds})
    text = json.dumps({**facts, "steps": curves})
    write_atomic(folder / PROFILE, text.encode())
    with styled():
        write_atomic(folder / "memory_of_a_step.png", png(memory_picture(read_profile(folder / PROFILE))))
    if (pieces := experiment.training.pieces) > 1:
        console.print(f"{experiment.method.name}: minibatches in {pieces} pieces; what is kept is that of the first")
    console.print(f"{threads} thread{'s' * (threads > 1)}; profile and picture: {folder}", soft_wrap=True)
