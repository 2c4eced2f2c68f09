"""The growth gradient over several minibatches, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training, growth
from fedsparse.federated.growth import find_growth, growth_batches, portions
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.pruning import from_groups
from fedsparse.topology import Topology


class Linear(Method):
    """The loss is the mean of y_0 + 2 y_1 - y_2: the gradient of weight (n, c) is (1, 2, -1)_n times the mean x_c."""

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        return (output @ torch.tensor([1.0, 2.0, -1.0])).mean()


SAMPLES = [[10.0, 0, 0, 1], [-10, 0, 5, 1], [0, 2, 5, 1], [0, 2, 0, 1], [5, 1, 5, 1]]


def client_of(batch_size: int) -> Client:
    """5 samples whose mean is (1, 1, 3, 1), and a 3 x 4 layer, active 0 and 6."""
    data = Dataset("toy", torch.tensor(SAMPLES).view(5, 1, 1, 4), torch.zeros(5, dtype=torch.int64), 3, (0.0,), (1.0,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    sparsify(model, masks={"1": from_groups(torch.tensor([0, 6]), (3, 4)).mask()})
    return Client(0, 1, 0, model, data, np.arange(5), Training(batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [5, 3, 2, 1])
def test_over_all_data_it_is_the_mean_gradient_however_large_the_batches_are(batch_size: int) -> None:
    """g = 1 1 3 1 | 2 2 6 2 | -1 -1 -3 -1: of the inactive ones 2 and 10 have 3, and 4, 5 and 7 have 2.

    Batches of 3 and 2, and of 2, 2 and (a single one is left out where others are there) none: then samples are
    missing, and the mean is over the other four. The mean of the batches' means would not weigh samples alike.
    """
    client = client_of(batch_size)
    batches = growth_batches(client, 0)
    seen = torch.cat([x.flatten(1) for x, _ in batches()])
    assert len(seen) == (4 if batch_size == 2 else 5)
    gradient = (torch.tensor([1.0, 2, -1])[:, None] * seen.mean(0)).flatten()
    found = find_growth(client, Linear(), {"1": 3}, batches)["1"]
    if batch_size != 2:
        assert found.groups.tolist() == [2, 4, 10]
        assert found.gradients.tolist() == pytest.approx([3.0, 2.0, -3.0])
    assert torch.allclose(found.gradients, gradient[found.groups], atol=1e-5)
    assert all(p.grad is None for p in client.model.parameters())
    assert not any(layer._forward_hooks for layer in sparse_layers(client.model).values())


def test_a_direction_holds_over_several_batches_too() -> None:
    """A step goes along -g: up at 8 to 11 alone. D is up at 4 and 9, down at 2 and 10: candidates 2 and 9."""
    direction = torch.zeros(12)
    direction[[4, 9]], direction[[2, 10]] = 1.0, -1.0
    client = client_of(3)
    found = find_growth(client, Linear(), {"1": 3}, growth_batches(client, 0), {"1": direction.view(3, 4)})["1"]
    assert found.groups.tolist() == [2, 9]


def test_rows_are_summed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 10 weights at a time: 3 of 5 rows of 3, the other 2 with one of 4, two of 4, a row of 12, two of 2."""
    monkeypatch.setattr(growth, "SUMMED", 10)
    shapes = {"a": (5, 3), "b": (3, 4), "c": (1, 12), "d": (2, 2)}
    layers = {name: Topology.from_mask(torch.ones(shape, dtype=torch.bool)) for name, shape in shapes.items()}
    assert portions(layers) == [
        {"a": slice(0, 3)},
        {"a": slice(3, 5), "b": slice(0, 1)},
        {"b": slice(1, 3)},
        {"c": slice(0, 1)},
        {"d": slice(0, 2)},
    ]
    assert portions({}) == []
    pairs = Topology.from_mask(torch.ones(4, 3, dtype=torch.bool), granularity=2)
    assert portions({"p": pairs}) == [{"p": slice(0, 2)}, {"p": slice(2, 4)}]


@pytest.mark.parametrize("summed", [4, 8, 100])
def test_portions_change_nothing(summed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SUMMED", summed)
    client = client_of(3)
    found = find_growth(client, Linear(), {"1": 3}, growth_batches(client, 0))["1"]
    assert found.groups.tolist() == [2, 4, 10]
    assert found.gradients.tolist() == pytest.approx([3.0, 2.0, -3.0])
