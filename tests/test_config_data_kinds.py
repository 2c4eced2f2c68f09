"""Configurations of text, natural clients and splits by quantity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparse.config import ConfigError, from_tables
from fedsparse.config.experiment import experiment_of
from fedsparse.data import Text


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f"{name} little words in a row, again and again.\n" * 12)
    return tmp_path


def tables(corpus: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, dict[str, Any]] = {
        "data": {"name": f"text:{corpus}", "context": 8},
        "partition": {"kind": "quantity", "clients": 3},
        "model": {"name": "gpt", "width": 0.25},
        "train": {"batch_size": 4},
        "method": {"name": "fedavg"},
    }
    return {key: table | changes.get(key, {}) for key, table in base.items()}


def test_text_with_gpt(corpus: Path) -> None:
    experiment = experiment_of(from_tables(tables(corpus)))
    assert isinstance(experiment.train, Text)
    assert experiment.model.get_parameter("positions.weight").shape == (8, 32)
    assert experiment.model.get_parameter("head.weight").shape == (experiment.train.classes, 32)
    assert sorted(np.concatenate(experiment.parts)) == list(range(len(experiment.train)))


def test_vocab_and_natural_and_contiguous(corpus: Path) -> None:
    natural = experiment_of(
        from_tables(tables(corpus, data={"vocab": 270, "context": 4}, partition={"kind": "natural"}))
    )
    assert natural.train.classes == 270
    assert natural.train.clients is not None
    assert [set(natural.train.clients.numpy()[part]) for part in natural.parts] == [{0}, {1}, {2}]
    runs = experiment_of(from_tables(tables(corpus, partition={"contiguous": True})))
    assert np.array_equal(np.concatenate(runs.parts), np.arange(len(runs.train)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"name": "cnn"}}, "model.name is 'cnn' but .*; models of text: gpt, gpt2-32m"),
        ({"data": {"name": "digits", "context": 8}}, "model.name is 'gpt' but .*; models of images: cnn, "),
        ({"data": {"name": "digits"}, "model": {"name": "cnn"}}, "data.context is set but data.name is 'digits'"),
        ({"data": {"augment": True}}, "data.augment is set but .*, which is text"),
        ({"data": {"image_size": 8}}, "data.image_size is set but"),
        ({"data": {"name": "text:nowhere"}}, "data.name is 'text:nowhere', and it cannot be used: .* was not found"),
        ({"data": {"name": "text:"}}, "data.name is 'text:', which is not a known data set"),
        ({"data": {"context": 5000}}, "smaller context or more text"),
        ({"data": {"vocab": 256}}, "data.vocab is 256 but must be a whole number from 257 to 1000000"),
        ({"partition": {"kind": "natural", "clients": 4}}, "partition.clients is 4 .* there are 3 natural clients"),
        ({"partition": {"kind": "iid", "contiguous": True}}, "contiguous is for partition kind 'quantity'"),
        ({"method": {"density": 0.5, "initial": "synflow"}}, "method.initial is 'synflow' but data.name is text"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(corpus: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        experiment_of(from_tables(tables(corpus, **changes)))


def test_natural_needs_clients_in_the_data() -> None:
    config = from_tables({"partition": {"kind": "natural"}, "method": {"name": "fedavg"}})
    with pytest.raises(ConfigError, match="needs a data set that says which client each sample is from"):
        experiment_of(config)
