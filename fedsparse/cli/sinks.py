"""Where else a run's records go while it runs: TensorBoard, Weights & Biases, MLflow, each behind an extra of its name.

Each gets the numbers of every round under their names in rounds.jsonl, at step = round. rounds.jsonl stays the record:
a sink that fails ends the run, with the rounds so far kept, rather than going on unwatched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedsparse.config import Config

OnRound = Callable[[dict[str, Any]], None]


@contextmanager
def recording(config: Config, folder: Path, show: OnRound) -> Iterator[OnRound]:
    """A function that shows a record and hands its numbers to each sink of `config.track`."""
    with ExitStack() as stack:
        sinks = [stack.enter_context(SINKS[name](config, folder)) for name in config.track]

        def on_round(record: dict[str, Any]) -> None:
            show(record)
            for sink in sinks:
                sink(numbers(record), record["round"])

        yield on_round


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record: lists by their length, tables by name/key; what is missing is left out."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= {f"{key}/{name}": float(number) for name, number in value.items()}
        elif isinstance(value, list):
            found[key] = float(len(value))
        elif isinstance(value, int | float):
            found[key] = float(value)
    return found


Sink = Callable[[dict[str, float], int], None]


@contextmanager
def tensorboard(config: Config, folder: Path) -> Iterator[Sink]:
    """Event files in the run's folder: `tensorboard --logdir runs`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write(found: dict[str, float], step: int) -> None:
            for name, number in found.items():
                writer.add_scalar(name, number, step)

        yield write


@contextmanager
def wandb(config: Config, folder: Path) -> Iterator[Sink]:
    """A run of the project `fedsparse`; WANDB_* variables say where and whether online."""
    import wandb

    with wandb.init(project="fedsparse", name=config.name, dir=str(folder), config=config.as_dict()) as run:
        yield lambda found, step: run.log(found, step=step)


@contextmanager
def mlflow(config: Config, folder: Path) -> Iterator[Sink]:
    """A run of the experiment that MLFLOW_* variables choose, with the configuration as parameters."""
    import mlflow

    with mlflow.start_run(run_name=config.name):
        mlflow.log_params(flat(config.as_dict()))
        yield lambda found, step: mlflow.log_metrics(found, step=step)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


SINKS: dict[str, Callable[[Config, Path], AbstractContextManager[Sink]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
