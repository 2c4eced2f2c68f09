"""Clients trained at once, against the same clients trained one after the other."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.config import ConfigError, from_tables
from fedsparse.config.experiment import experiment_of
from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training, exchange
from fedsparse.federated.client import train
from fedsparse.federated.cohort import admits, train_together
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.worker import Worker
from fedsparse.federated.workers import Done, LocalWorkers, Tag
from fedsparse.methods import FedAvg, FedSGC
from fedsparse.models import build
from fedsparse.nn import Cohort, sparse_layers, sparsify, use_region
from fedsparse.optim import SGD
from fedsparse.topology import Topology
from fedsparse.wire import Values, decode, encode

SAMPLES = 60
# Batches of 8: full ones only; a smaller last one; one batch, smaller than the others'; a single sample is left out
PARTS = [np.arange(16), np.arange(16, 36), np.arange(36, 40), np.arange(40, 57)]


class Doubles(Dataset):
    """Images as float64, so that a wrong step is told from rounding."""

    def batch(self, index: Any, augment: Any = None) -> tuple[Tensor, Tensor]:
        x, y = super().batch(index, augment)
        return x.double(), y


def dataset(kind: type[Dataset] = Doubles) -> Dataset:
    images = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return kind("toy", images, torch.arange(SAMPLES) % 4, 4, (0.0,), (1.0,))


def network(kind: str, granularity: int = 1) -> nn.Module:
    torch.manual_seed(1)
    if kind == "linear":
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    elif kind == "group norm":
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)),
        )
    else:
        model = build("resnet18", 4, channels=1, image_size=8, width=0.25)
    return sparsify(model.double(), 0.3, granularity=granularity)


def clients_of(model: nn.Module, training: Training, parts: list[np.ndarray] = PARTS) -> list[Client]:
    return [Client(k, 2, 7, model, dataset(), part, training) for k, part in enumerate(parts)]


def alone(model: nn.Module, training: Training, k: int) -> tuple[Client, dict[str, Tensor]]:
    client = clients_of(copy.deepcopy(model), training)[k]
    with use_region(False):
        train(client, Method())
    return client, client.model.state_dict()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["linear", "group norm", "resnet18"])
def test_every_client_as_if_alone(kind: str, optimizer: str) -> None:
    """Weights, statistics, losses and counters in float64, for unequal numbers and sizes of batches."""
    model = network(kind)
    training = Training(
        epochs=2,
        batch_size=8,
        lr=0.01,
        weight_decay=0.1,
        optimizer=optimizer,
        proximal=0.1,  # type: ignore[arg-type]
    )
    found = []
    for client in train_together(clients_of(copy.deepcopy(model), training), FedAvg()):
        found.append((client, copy.deepcopy(client.model.state_dict())))
    assert len(found) == len(PARTS)
    for k, (client, state) in enumerate(found):
        other, expected = alone(model, training, k)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-11, msg=f"client {k}: {name}")
        assert client.loss == pytest.approx(other.loss, rel=1e-9)
        assert client.iteration == other.iteration == client.iterations
        assert client.batch is not None
        assert other.batch is not None
        assert torch.equal(client.batch[0], other.batch[0])
    first, second = (state[next(iter(state))] for _, state in found[:2])
    assert not torch.equal(first, second)


def test_an_idle_client_does_not_move() -> None:
    """Momentum and weight decay would move it; its statistics and its momentum stay too."""
    model = network("resnet18")
    cohort = Cohort(model, 2, lambda them: SGD(them, lr=0.1, momentum=0.9, weight_decay=0.1), cross_entropy)
    batch = dataset().batch(np.arange(8), None)
    cohort.step([batch, batch])
    before = [t.clone() for t in (*cohort._state(), *cohort.buffers.values())]
    losses = cohort.step([batch, None])
    assert losses[1].isnan()
    assert losses[0].isfinite()
    after = [*cohort._state(), *cohort.buffers.values()]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(after, before))
    assert not torch.equal(after[0][0], before[0][0])


def test_sparse_ops_take_clients_to_the_same_bits() -> None:
    """Without a triton back end the clients are computed one after the other."""
    t = Topology.from_mask(torch.rand(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3)
    values, x, bias = torch.randn(3, t.nnz), torch.randn(3, 4, 5, 6, 6), torch.randn(3, 6)
    operands = [tensor.requires_grad_() for tensor in (values, x, bias)]
    y = torch.vmap(lambda v, each, b: ops.conv2d(v, t, each, b, padding=1))(*operands)
    gy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, operands, gy)
    for k in range(3):
        own = [tensor[k].detach().requires_grad_() for tensor in operands]
        expected = ops.conv2d(own[0], t, own[1], own[2], padding=1)
        assert torch.equal(y[k], expected)
        for found, wanted in zip(gradients, torch.autograd.grad(expected, own, gy[k]), strict=True):
            assert torch.equal(found[k], wanted)


def test_clients_may_share_an_operand() -> None:
    t = Topology.from_mask(torch.ones(4, 5, dtype=torch.bool))
    values, x = torch.randn(20, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    y = torch.vmap(lambda each: ops.spmm(values, t, each), in_dims=2, out_dims=1)(x.movedim(0, 1))
    assert y.shape == (3, 2, 4)
    torch.testing.assert_close(y[:, 1], ops.spmm(values, t, x[:, :, 1].T.contiguous()))


def test_methods_that_change_local_training_are_refused() -> None:
    assert admits(FedAvg())
    assert not admits(FedSGC())
    with pytest.raises(ValueError, match="one after the other"):
        next(train_together(clients_of(network("linear"), Training()), FedSGC()))


def test_dropout_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.5)).double()
    with pytest.raises(RuntimeError, match="random"):
        next(train_together(clients_of(model, Training()), FedAvg()))


def test_masks_are_shared() -> None:
    model = network("linear")
    assert all(".cols" not in name for name in Cohort(model, 2, SGD, cross_entropy).buffers)
    assert sparse_layers(model)


def worker(training: Training, method: Method | None = None) -> Worker:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    sparsify(model, {"0": 0.5})
    made = Worker(model, method or FedAvg(), [], dataset(Dataset), PARTS, training, 7)
    sections = {"parameters": Values(exchange.parameters(model)), "buffers": Values(exchange.buffers(model))}
    made.receive_weights(encode("weights", 0, -1, sections))
    return made


def numbers(done: Done) -> dict[str, Tensor]:
    sections = decode(done.answer).sections
    return {name: torch.as_tensor(section.values) for name, section in sections.items()}


def test_reports_as_from_one_client_after_the_other() -> None:
    """Four clients in cohorts of three: the same reports but for rounding, in the order they were asked for."""
    together = LocalWorkers(worker(Training(epochs=2, batch_size=8, cohort=3))).work(Tag.TRAIN, [2, 0, 3, 1])
    alone = LocalWorkers(worker(Training(epochs=2, batch_size=8))).work(Tag.TRAIN, [2, 0, 3, 1])
    for found, expected in zip(together, alone, strict=True):
        assert found.client == expected.client
        assert found.seconds > 0
        assert found.peak > 0
        ours, theirs = numbers(found), numbers(expected)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


class Picky(FedAvg):
    """Its client 0 cannot report."""

    def report(self, client: Client) -> Any:
        if client.id == 0:
            raise RuntimeError("no report from 0")
        return super().report(client)


def test_one_clients_failure_costs_only_that_client(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedsparse"):
        done = list(LocalWorkers(worker(Training(batch_size=8, cohort=4), Picky())).work(Tag.TRAIN, [0, 1, 2]))
    assert [each.answer is None for each in done] == [True, False, False]
    assert "no report from 0" in done[0].error
    assert "one after the other" in caplog.text


def test_configuration_refuses_what_a_cohort_cannot_do() -> None:
    tables = {"train": {"cohort": 4, "rounds": 1}, "method": {"name": "fedsgc"}}
    with pytest.raises(ConfigError, match="train.cohort is 4, but fedsgc changes"):
        experiment_of(from_tables(tables))
    limited = {"train": {"cohort": 4, "memory_limit": "1 GiB"}, "method": {"name": "fedavg"}}
    with pytest.raises(ConfigError, match="leave one of them out"):
        experiment_of(from_tables(limited))
    assert experiment_of(from_tables(tables | {"method": {"name": "fedavg"}})).training.cohort == 4
