"""Records go to the sinks that the configuration names; a missing package is one sentence before any work."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedsparse.cli.sinks import numbers, recording
from fedsparse.config import ConfigError, from_tables
from fedsparse.config.experiment import check_names

RECORD = {
    "round": 3,
    "accuracy": 0.5,
    "loss": None,
    "layer_densities": {"0": 0.25},
    "clients": [1, 4],
    "rejected": [],
    "bytes_up": 7,
}
NUMBERS = {"round": 3.0, "accuracy": 0.5, "layer_densities/0": 0.25, "clients": 2.0, "rejected": 0.0, "bytes_up": 7.0}


class Noted:
    """Stands for a package or its run: notes every call."""

    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments + tuple(options.values())))
            return self

        return call

    def __enter__(self) -> "Noted":
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.append(("exit", ()))


def config(*track: str) -> Any:
    return from_tables({"track": list(track), "method": {"name": "fedavg"}})


@pytest.mark.parametrize(
    ("name", "module", "call", "step_last"),
    [("wandb", "wandb", "log", True), ("mlflow", "mlflow", "log_metrics", True)],
)
def test_numbers_go_to_the_sink_at_their_round(
    name: str, module: str, call: str, step_last: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, Any]] = []
    fake = ModuleType(module)
    noted = Noted(calls)
    for function in ("init", "start_run", "log_params", "log_metrics"):
        setattr(fake, function, getattr(noted, function))
    monkeypatch.setitem(sys.modules, module, fake)
    shown: list[dict[str, Any]] = []
    with recording(config(name), tmp_path, shown.append) as on_round:
        on_round(RECORD)
    assert shown == [RECORD]
    assert (call, (NUMBERS, 3)) in calls
    assert calls[-1][0] == "exit"


def test_tensorboard_writes_every_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, Any]] = []
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda folder: (calls.append(("writer", (folder,))), Noted(calls))[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with recording(config("tensorboard"), tmp_path, lambda record: None) as on_round:
        on_round(RECORD)
    assert calls[0] == ("writer", (str(tmp_path / "tensorboard"),))
    assert [arguments for name, arguments in calls if name == "add_scalar"] == [(k, v, 3) for k, v in NUMBERS.items()]


def test_without_sinks_a_record_is_only_shown(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    with recording(config(), tmp_path, shown.append) as on_round:
        on_round(RECORD)
    assert shown == [RECORD]
    assert numbers(RECORD) == NUMBERS


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ConfigError) as error:
        check_names(config(name))
    assert str(error.value) == (
        f"track names {name!r}, but the package {name} is not installed; pip install 'fedsparse[{name}]' brings it"
    )


def test_an_unknown_sink_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="tensorboard"):
        config("comet")
