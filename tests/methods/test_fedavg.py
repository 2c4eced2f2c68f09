"""FedAvg by hand: two clients, dense and on a fixed mask, two rounds of real local training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Training, exchange
from fedsparse.methods import FedAvg


class Linear(FedAvg):
    """FedAvg whose loss is the mean output, so that the gradient of weight (n, c) is the mean of x_c, for any weight."""

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        return output.sum(1).mean()


def two_clients(method: FedAvg, **training: object) -> Loop:
    """A 2 x 2 layer with biases; client 0 has one sample (1, 2), client 1 three samples whose means are (3, -1)."""
    samples = torch.tensor([[1.0, 2.0], [3, -1], [2, 0], [4, -2]]).view(4, 1, 1, 2)
    data = Dataset("toy", samples, torch.tensor([0, 1, 0, 1]), 2, (0.0,), (1.0,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model[1].bias.data = torch.tensor([0.0, 8.0])
    settings = {"rounds": 2, "clients_per_round": 2, "batch_size": 3, "lr": 0.5, "momentum": 0.0} | training
    parts = [np.array([0]), np.array([1, 2, 3])]
    loop = Loop(Experiment(model, method, data, data, parts, Training(**settings)))  # type: ignore[arg-type]
    loop.open()
    return loop


@pytest.mark.parametrize("epochs", [1, 2])
def test_two_rounds_of_dense_training_by_hand(epochs: int) -> None:
    """A step, one an epoch, takes .5 (1, 2) from the rows at A (n = 1) and .5 (3, -1) at B (n = 3), .5 from biases.

    The mean over n / 4 takes .25 * .5 (1, 2) + .75 * .5 (3, -1) = (1.25, -.125) a step: of rows (1 2) and (3 4).
    Unweighted it would be (1, .25).
    """
    loop = two_clients(Linear(), epochs=epochs)
    layer = loop.server.model[1]
    for t in (0, 1):
        record = loop.round(t)
        steps = epochs * (t + 1)
        assert record["rejected"] == []
        moved = torch.tensor([1.25, -0.125]) * steps
        assert torch.allclose(layer.weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]) - moved)
        assert torch.allclose(layer.bias, torch.tensor([0.0, 8.0]) - 0.5 * steps)
    assert loop.server.density() == 1.0
    assert loop.server.mask_version == 0


def test_momentum_starts_afresh_every_round() -> None:
    """Two epochs with momentum .5: steps of 1 and 1.5 gradients, in the second round again: 5 in all (carried over, it would be 6.125)"""
    loop = two_clients(Linear(), epochs=2, momentum=0.5)
    for t in (0, 1):
        loop.round(t)
    moved = torch.tensor([1.25, -0.125]) * 5
    assert torch.allclose(loop.server.model[1].weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]) - moved)


def test_on_a_fixed_mask_only_active_weights_move_and_the_mask_stays() -> None:
    """Magnitude keeps the 2 largest of 1 2 3 4, 3 and 4: minus (1.25, -.125) a round; 1 and 2 are gone."""
    loop = two_clients(Linear(density=0.5, initial="magnitude", distribution="global", prune_last=True))
    layer = loop.server.layers["1"]
    for t in (0, 1):
        record = loop.round(t)
        assert record["mask_change"] == 0.0
        assert layer.topology.flat().tolist() == [2, 3]
        assert torch.allclose(layer.values, torch.tensor([3.0, 4.0]) - torch.tensor([1.25, -0.125]) * (t + 1))
    assert exchange.mask(loop.server.model).tolist() == [False, False, True, True]
    assert loop.server.mask_version == 1
