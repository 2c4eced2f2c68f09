import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training
from fedsparse.federated import client as client_module
from fedsparse.federated.client import train
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.optim import Adam
from fedsparse.pruning import from_groups


def toy(training: Training, samples: int = 10) -> Client:
    torch.manual_seed(0)
    data = Dataset("toy", torch.randn(samples, 1, 2, 2), torch.arange(samples) % 2, 2, (0.0,), (1.0,))
    model = sparsify(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2)), 0.5)
    return Client(0, 1, 5, model, data, np.arange(samples), training)


def test_learning_rates_over_rounds() -> None:
    assert Training(lr=2.0, lr_decay=0.5).learning_rate(3) == 0.25
    assert math.isclose(Training(rounds=10, lr=2.0, lr_schedule="cosine").learning_rate(5), 1.0)


def test_a_single_last_sample_is_left_out() -> None:
    client = toy(Training(batch_size=3))
    assert [len(y) for _, y in client.batches("x")] == [3, 3, 3]
    assert [len(y) for _, y in toy(Training(batch_size=3), samples=1).batches("x")] == [1]


@pytest.mark.parametrize(("samples", "size"), [(1, 3), (9, 3), (10, 3), (11, 3), (2, 3), (4, 1)])
def test_iterations_are_counted_as_batches_come(samples: int, size: int) -> None:
    client = toy(Training(epochs=2, batch_size=size), samples)
    assert client.iterations == 2 * len(list(client.batches("x")))
    train(client, Method())
    assert client.iteration == client.iterations


def test_the_proximal_term_is_the_gradient_of_its_formula() -> None:
    """One step: w - lr (g + mu (w - w_t)); mu / 2 ||w - w_t||^2 by autograd must move the weights to the same place."""
    client = toy(Training(lr=0.1, momentum=0.0, proximal=0.7, epochs=2, batch_size=5))
    twin = toy(Training(lr=0.1, momentum=0.0, epochs=2, batch_size=5))
    start = [p.detach().clone() for p in twin.model.parameters()]

    class Explicit(Method):
        def loss(self, client: Client, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            distance = sum((p - s).square().sum() for p, s in zip(client.model.parameters(), start))
            return functional.cross_entropy(output, target) + 0.35 * distance

    train(client, Method())
    train(twin, Explicit())
    for p, q in zip(client.model.parameters(), twin.model.parameters()):
        assert torch.allclose(p, q, atol=1e-6)


def test_losses_left_on_a_gpu_add_up_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As float64 tensors they are added as Python's floats are, and read once an epoch."""
    at_once, later = (toy(Training(batch_size=3, epochs=2), samples=11) for _ in range(2))
    train(at_once, Method())
    monkeypatch.setattr(client_module, "_number", lambda loss: loss.detach().double())
    train(later, Method())
    assert type(later.loss) is float
    assert later.loss == at_once.loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_mask_change_in_mid_round_moves_state_and_anchor(optimizer: str) -> None:
    client = toy(Training(optimizer=optimizer, proximal=0.1, momentum=0.9, lr=0.01))  # type: ignore[arg-type]
    assert isinstance(client.optimizer, Adam) == (optimizer == "adam")
    train(client, Method())
    layer = sparse_layers(client.model)["1"]
    before = client.anchor[layer.values].clone()
    started = layer.topology.flat()
    kept = started[:4]
    inactive = (~layer.topology.mask().flatten()).nonzero().flatten()[:1]
    client.change_mask(layer, from_groups(torch.cat([kept, inactive]), (6, 4)))
    anchor = client.anchor[layer.values]
    assert anchor.shape == (5,)
    assert sorted(anchor[anchor != 0].tolist()) == sorted(before[:4].tolist())
    train(client, Method())
    back = from_groups(torch.cat([inactive, started]), (6, 4))
    client.change_mask(layer, back)
    where = dict(zip(started.tolist(), before.tolist()))
    wanted = [where.get(place, 0.0) for place in layer.topology.flat().tolist()]
    assert client.anchor[layer.values].tolist() == wanted, "pruned weights that come back have their anchor again"


def test_what_a_method_enters_is_left_when_training_ends_or_fails() -> None:
    states: list[str] = []

    @contextmanager
    def watch() -> Iterator[None]:
        states.append("entered")
        try:
            yield
        finally:
            states.append("left")

    class Watching(Method):
        def begin(self, client: Client) -> None:
            client.contexts.enter_context(watch())

        def step(self, client: Client) -> None:
            if client.id == 1:
                raise RuntimeError("no step")
            super().step(client)

    train(toy(Training()), Watching())
    assert states == ["entered", "left"]
    failing = toy(Training())
    failing.id = 1
    with pytest.raises(RuntimeError, match="no step"):
        train(failing, Watching())
    assert states == ["entered", "left"] * 2
