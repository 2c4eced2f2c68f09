import copy

import pytest
import torch
from torch import nn

from fedsparse.federated import Server, Training, timing
from fedsparse.federated.timing import round_seconds, update_seconds
from fedsparse.nn import SparseConv2d, SparseLayer, sparse_layers, sparsify


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.Linear(10, 2),
    ]
    return sparsify(nn.Sequential(*layers), {"0": 1.0, "4": 1.0})


def test_the_slope_between_two_densities_is_the_price_of_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a pass of the convolution takes 1 + .5 nnz, of the linear layer 2 + .25 nnz, of the model 100.

    At density .1 they have round(3.6) = 4 and 64 weights: 100 - .5 * 4 - .25 * 64 = 82 seconds are not explained.
    """
    seen = []

    def alone(layer: SparseLayer, call: tuple[tuple[int, ...], bool], warmup: int, repeats: int) -> float:
        seen.append((call, layer.topology.nnz))
        base, slope = (1.0, 0.5) if isinstance(layer, SparseConv2d) else (2.0, 0.25)
        return base + slope * layer.topology.nnz

    monkeypatch.setattr(timing, "_alone", alone)
    monkeypatch.setattr(timing, "_median", lambda run, device, warmup, repeats: 100.0)
    slopes, other = update_seconds(model(), torch.ones(3, 1, 4, 4))
    assert slopes == {"0": pytest.approx(0.5), "4": pytest.approx(0.25)}
    assert other == pytest.approx(82.0)
    assert seen == [
        (((3, 1, 4, 4), False), 4),
        (((3, 1, 4, 4), False), 18),
        (((3, 64), True), 64),
        (((3, 64), True), 320),
    ]


def test_noise_never_makes_a_weight_cost_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_alone", lambda layer, *_: -float(layer.topology.nnz))
    slopes, other = update_seconds(model(), torch.ones(3, 1, 4, 4))
    assert slopes == {"0": 0.0, "4": 0.0}
    assert other > 0, "a pass of the model was really timed"


def test_real_kernels_are_timed_on_a_copy() -> None:
    original = model()
    before = copy.deepcopy(original.state_dict())
    slopes, other = update_seconds(original, torch.ones(8, 1, 4, 4), warmup=1, repeats=3)
    assert all(0 <= s < 1 for s in slopes.values())
    assert 0 <= other < 1
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())
    assert [layer.topology.density for layer in sparse_layers(original).values()] == [1.0, 1.0]


def test_a_large_layer_really_costs_more_with_more_weights() -> None:
    big = sparsify(nn.Sequential(nn.Linear(512, 512)), {"0": 1.0})
    slopes, _ = update_seconds(big, torch.ones(64, 512))
    assert slopes["0"] > 0


def test_a_round_is_its_updates_and_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """n = 5 and 8 in batches of 4: 2 batches each, 3 epochs: 6 updates. Dense numbers: 4 + 8 + 10 + 22 = 44.

    At 4 bytes a second a number takes 2 seconds both ways: .5 * 6 + 2 = 5, .25 * 6 + 2 = 3.5 and 7 * 6 + 44 * 2 = 130.
    """
    batches = []

    def fake(_: nn.Module, x: torch.Tensor) -> tuple[dict[str, float], float]:
        batches.append(tuple(x.shape))
        return {"0": 0.5, "4": 0.25}, 7.0

    monkeypatch.setattr(timing, "update_seconds", fake)
    server = Server(model(), 0, ["0", "4"], 1, (1, 4, 4), [5, 8], training=Training(epochs=3, batch_size=4))
    assert round_seconds(server, 4.0) == ({"0": 5.0, "4": 3.5}, 130.0)
    assert batches == [(4, 1, 4, 4)]
