"""From a configuration to an experiment: seeds, shares, splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsparse.config import ConfigError, from_tables
from fedsparse.config.experiment import device_of, experiment_of
from fedsparse.federated import Experiment


def experiment(**tables: Any) -> Experiment:
    return experiment_of(from_tables({"method": {"name": "fedavg"}} | tables))


def test_every_sample_belongs_to_one_client() -> None:
    made = experiment(partition={"clients": 7})
    assert len(made.parts) == 7
    assert made.public is None
    assert np.array_equal(np.sort(np.concatenate(made.parts)), np.arange(len(made.train)))


def test_the_public_share_is_no_clients() -> None:
    """A quarter of 1442 images, rounded: 360."""
    made = experiment(data={"public_share": 0.25}, train={"pretrain_epochs": 3})
    assert made.public is not None
    assert len(made.public) == 360
    assert made.pretrain_epochs == 3
    assert np.array_equal(np.sort(np.concatenate([made.public, *made.parts])), np.arange(1442))


def test_the_seed_draws_model_and_split() -> None:
    first, same, other = experiment(seed=1), experiment(seed=1), experiment(seed=2)
    assert all((a == b).all() for a, b in zip(first.model.parameters(), same.model.parameters()))
    assert all(np.array_equal(a, b) for a, b in zip(first.parts, same.parts))
    assert not all((a == b).all() for a, b in zip(first.model.parameters(), other.model.parameters()))
    assert not all(np.array_equal(a, b) for a, b in zip(first.parts, other.parts))


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"aggregation": {"rule": "krum"}}, "aggregation.rule 'krum' needs single reports"),
        ({"aggregation": {"norm_bound": 5.0}}, "aggregation.norm_bound compares reports with rank 0's weights"),
        ({"failures": {"round_deadline": 9}}, "a rank at work beyond failures.round_deadline cannot send its sum"),
    ],
)
def test_sums_on_the_ranks_are_refused_where_single_reports_are_needed(
    tables: dict[str, dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(ranks={"sums": "local"}, **tables)
    assert str(error.value) == f"ranks.sums is 'local', but {sentence}"
    assert experiment(ranks={"sums": "local"}).sums == "local"
    assert experiment(**tables).sums == "server"


def test_the_tables_reach_the_experiment() -> None:
    made = experiment(
        name="trial",
        data={"augment": True, "train_limit": 200, "image_size": 8},
        model={"name": "resnet20", "norm": "group", "width": 0.5},
        train={"rounds": 3, "lr": 0.5, "optimizer": "adam", "lr_schedule": "cosine", "proximal": 0.1},
        wire={"values": "fp16"},
    )
    training = made.training
    assert (training.rounds, training.lr, training.optimizer, training.proximal) == (3, 0.5, "adam", 0.1)
    assert (training.lr_schedule, training.augment, made.wire, made.name) == ("cosine", True, "fp16", "trial")
    assert (len(made.train), made.train.batch(np.array([0]))[0].shape) == (200, (1, 1, 8, 8))
    assert made.labels == {"model": "resnet20", "dataset": "digits"}


def test_text_needs_a_model_of_text() -> None:
    with pytest.raises(ConfigError, match=r"model\.name is 'cnn' but data\.name is 'text:x'"):
        experiment(data={"name": "text:x"})


def test_ranks_of_a_host_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    config = from_tables({"device": "cuda", "method": {"name": "fedavg"}})
    for rank in range(5):
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(rank))
        assert device_of(config) == torch.device("cuda")
    assert chosen == [0, 1, 0, 1, 0]
    assert device_of(from_tables({"method": {"name": "fedavg"}})) == torch.device("cpu")
    assert len(chosen) == 5, "on the CPU none is chosen"


def test_activations_that_no_layer_could_have_are_refused() -> None:
    for levels, said in (
        ("half", "train.activations is 'half' but must be one of dense, lossless"),
        ({"conv9": "lossless"}, "no layer's name fits 'conv9'"),
        ({"conv9": "dense"}, "no layer's name fits 'conv9'"),
    ):
        with pytest.raises(ConfigError, match=said):
            experiment(train={"activations": levels})
    with pytest.raises(ConfigError, match=r"train\.cohort is 2, and clients trained together keep all"):
        experiment(train={"activations": "lossless", "cohort": 2})
    with pytest.raises(ConfigError, match=r"train\.activations is an empty table but must name"):
        experiment(train={"activations": {}})
    for dense in ({"*": "dense"}, {"0*": "dense"}):
        assert experiment(model={"name": "resnet20"}, train={"activations": dense}).training.activations == dense
    with pytest.raises(ConfigError, match="mlp has no convolution"):
        experiment(model={"name": "mlp"}, train={"activations": "lossless"})
    assert experiment(train={"activations": {"*": "recompute"}}).training.activations == {"*": "recompute"}


def test_pieces_too_small_for_the_models_batch_norm_are_refused() -> None:
    assert experiment(train={"batch_size": 8, "pieces": 2}).training.pieces == 2
    with pytest.raises(ConfigError, match=r"train\.pieces is 4, but batch norm needs pieces of at least 4 samples"):
        experiment(train={"batch_size": 8, "pieces": 4})
    assert experiment(train={"batch_size": 8, "pieces": 8}, model={"norm": "group"}).training.pieces == 8
    fedmef = {"name": "fedmef", "density": 0.2}
    taken = experiment(train={"batch_size": 8, "pieces": 4}, model={"name": "resnet20"}, method=fedmef)
    assert taken.training.pieces == 4, "FedMef has NSConv in the place of batch norm"
