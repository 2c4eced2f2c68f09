"""Configuration: defaults, overrides and their types, the sentences for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, ValidationError

from fedsparse.config import ConfigError, Partition, from_tables, load, schema
from fedsparse.config.load import override_value
from fedsparse.config.method_table import instance_of, settings_of
from fedsparse.config.schema import Tables
from fedsparse.methods import FedAvg, FedTiny
from fedsparse.wire import Carrier

MINIMAL = '[method]\nname = "fedavg"\n'


def written(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "trial.toml"
    path.write_text(text)
    return path


def test_defaults_make_a_dense_fedavg(tmp_path: Path) -> None:
    config = load(written(tmp_path))
    assert config.name == "trial"
    assert config.method == FedAvg()
    assert (config.seed, config.data.name, config.partition.kind) == (0, "digits", "dirichlet")
    assert config.train.clients_per_round == config.partition.clients


PAPERS = {
    "fedavg": (5, 10, 0.05, 0.9, 0.0),
    "feddst": (10, 32, 0.01, 0.9, 1e-3),
    "fedtiny": (5, 64, 0.05, 0.9, 0.0),
    "fedrts": (5, 64, 0.01, 0.9, 0.0),
    "prunefl": (1, 32, 0.05, 0.9, 0.0),
}
"""Epochs, batch size, lr, momentum, weight decay: the paper's where it states them, else ours (1, 32, .05, .9, 0)."""


@pytest.mark.parametrize("name", PAPERS)
def test_what_train_leaves_out_is_the_methods_and_what_it_gives_wins(name: str) -> None:
    def train(**given: Any) -> tuple[Any, ...]:
        made = from_tables({"train": given, "method": {"name": name}}).train
        return made.epochs, made.batch_size, made.lr, made.momentum, made.weight_decay

    epochs, batch, _, momentum, decay = PAPERS[name]
    assert train() == PAPERS[name]
    assert train(lr=0.3) == (epochs, batch, 0.3, momentum, decay)
    ours = {"epochs": 1, "batch_size": 32, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    assert train(**ours) == tuple(ours.values()), "given, even as the schema has it"
    config = from_tables({"method": {"name": name}})
    assert from_tables(config.as_dict()).train == config.train, "config.json has all of it"


def test_a_method_with_a_setting_that_train_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FedAvg, "training", {"lr": -1.0})
    with pytest.raises(ConfigError, match=r"train\.lr is -1"):
        from_tables({"method": {"name": "fedavg"}})


def test_all_clients_take_part_unless_told(tmp_path: Path) -> None:
    assert load(written(tmp_path), ["partition.clients=37"]).train.clients_per_round == 37


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("train.lr=0.5", "train", "lr", 0.5),
        ("train.lr=.5", "train", "lr", 0.5),
        ("train.lr=1e-2", "train", "lr", 0.01),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.rounds=1_000", "train", "rounds", 1000),
        ("data.augment=true", "data", "augment", True),
        ("model.name=resnet20", "model", "name", "resnet20"),
        ('model.name="resnet20"', "model", "name", "resnet20"),
        ("wire.values = fp16", "wire", "values", "fp16"),
        ("data.dir=/a/b=c", "data", "dir", Path("/a/b=c")),
    ],
)
def test_set_reads_toml_values_and_bare_text(
    tmp_path: Path, override: str, table: str, key: str, value: object
) -> None:
    read = getattr(getattr(load(written(tmp_path), [override]), table), key)
    assert read == value
    assert type(read) is type(value) or isinstance(value, Path)


def test_set_makes_the_tables_it_needs(tmp_path: Path) -> None:
    config = load(written(tmp_path), ["method.name=fedtiny", "method.density=0.05"])
    assert config.method == FedTiny(density=0.05)


@pytest.mark.parametrize("text", ["1\nother = 2", "2026-01-01", "a b", ""])
def test_values_that_are_no_toml_scalar_are_text(text: str) -> None:
    assert override_value(text) == text


def test_later_sources_win(tmp_path: Path) -> None:
    path = written(tmp_path, 'seed = 1\n[data]\ndir = "here"\n' + MINIMAL)
    config = load(path, ["seed=2"], seed=3, data_dir="there")
    assert (config.seed, config.data.dir) == (3, Path("there"))


def test_as_dict_gives_the_same_configuration_again(tmp_path: Path) -> None:
    config = load(written(tmp_path), ["method.name=fedtiny", "method.pool=5", "model.width=0.5", "data.dir=x"])
    tables = {
        key: {inner: v for inner, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in config.as_dict().items()
    }
    assert from_tables(tables) == config


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = load(written(tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        config.train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("lr", -1, "train.lr is -1 but must be a number greater than 0"),
        ("lr", "fast", "train.lr is 'fast' but must be a number greater than 0"),
        ("lr", float("nan"), "train.lr is nan but must be a number greater than 0"),
        ("lr", float("inf"), "train.lr is inf but must be a number greater than 0"),
        ("momentum", 1.0, "train.momentum is 1.0 but must be a number at least 0 and less than 1"),
        ("rounds", 2.5, "train.rounds is 2.5 but must be a whole number from 1 to 1000000"),
        ("rounds", True, "train.rounds is true but must be a whole number from 1 to 1000000"),
        ("rounds", [1], "train.rounds is [1] but must be a whole number from 1 to 1000000"),
    ],
)
def test_sentences_name_field_value_and_range(key: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_tables({"train": {key: value}, "method": {"name": "fedavg"}})
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"trian": {}},
            "trian is not a key of the configuration; did you mean 'train'? "
            f"(keys: {', '.join(sorted([*Tables.model_fields, 'method']))})",
        ),
        (
            {"partition": {"client": 3}},
            "partition.client is not a key of [partition]; did you mean 'clients'? "
            f"(keys: {', '.join(sorted(Partition.model_fields))})",
        ),
        (
            {"partition": {"kind": "iidd"}},
            "partition.kind is 'iidd' but must be one of 'iid', 'dirichlet', 'shards', 'quantity', 'natural'",
        ),
        ({"wire": 3}, "wire is 3 but must be a table of the keys error_feedback, values"),
        ({"data": {"image_size": 2}}, "data.image_size is 2 but must be a whole number from 4 to 1024"),
    ],
)
def test_sentences_name_the_nearest_key_and_the_choices(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_tables(tables | {"method": {"name": "fedavg"}})
    assert str(error.value) == sentence


@dataclass(frozen=True)
class Invented:
    """A third party's method: a required field, constraints, a choice, an option, a list, a check of its own."""

    rate: Annotated[float, Field(gt=0, le=1)]
    mode: Literal["slow", "fast"] = "slow"
    cap: Annotated[int, Field(ge=1)] | None = None
    shares: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if self.cap == 13:
            raise ValueError("cap must not be 13")


def test_a_methods_dataclass_is_read_from_its_table() -> None:
    settings = {"rate": 1, "mode": "fast", "cap": 2, "shares": [0.1, 1]}
    assert instance_of(Invented, settings) == Invented(1.0, "fast", 2, (0.1, 1.0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "method.rate is missing; it must be a number greater than 0 and at most 1"),
        ({"rate": 0}, "method.rate is 0 but must be a number greater than 0 and at most 1"),
        ({"rate": 1, "mode": "fats"}, "method.mode is 'fats' but must be one of 'slow', 'fast'"),
        ({"rate": 1, "cap": "x"}, "method.cap is 'x' but must be a whole number at least 1"),
        ({"rate": 1, "cap": 13}, "method: cap must not be 13"),
        ({"rate": 1, "shares": ["x"]}, "method.shares is 'x' but must be a list whose entries are each a number"),
        (
            {"rat": 1},
            "method.rat is not a key of [method]; did you mean 'rate'? (keys: cap, mode, rate, shares)",
        ),
    ],
)
def test_sentences_for_a_methods_fields(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        instance_of(Invented, settings)
    assert str(error.value) == sentence


def test_settings_are_listed_with_their_defaults() -> None:
    assert settings_of(Invented) == {"rate": "required", "mode": "'slow'", "cap": "not set", "shares": "(0.5,)"}


def test_every_carrier_of_the_wire_can_be_configured() -> None:
    assert get_args(schema.Carrier) == get_args(Carrier)
