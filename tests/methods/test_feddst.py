import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, exchange
from fedsparse.federated.client import train
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import FedDST
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.pruning import from_groups
from fedsparse.wire import Bitmap, Section, Values, encode, sizes


def twelve_weights(active: list[int], rounds: int) -> Server:
    """A server with one 3 x 4 linear layer with biases and two clients of 1 and 3 samples."""
    server = Server(nn.Sequential(nn.Linear(4, 3)), 0, ["0"], 1, (4,), [1, 3], training=Training(rounds))
    server.set_masks({"0": from_groups(torch.tensor(active), (3, 4)).mask()})
    return server


def report(weights: dict[int, float], biases: list[float]) -> dict[str, Section]:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(weights)] = True
    parameters = torch.tensor([*weights.values(), *biases], dtype=torch.float32)
    return {"parameters": Values(parameters), "buffers": Values(torch.zeros(0)), "mask": Bitmap(mask)}


def play(method: FedDST, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
    """Send two reports through encode, judge, digest and sum, and update the server."""
    total = Total(declared=4)
    for id, sections in enumerate(reports):
        facts = Values(np.array([server.samples[id], 0.0]))
        data = encode("report", t, id, {"facts": facts, **sections})
        said, sent = judge(data, "report", t, id, server.samples[id], method.expect(server, t))
        total.add(id, said.samples, method.digest(server, sent, t))
    method.update(server, total, t)


def test_two_adjustments_by_hand() -> None:
    """K = 4 of 12 weights, dT = 1, T = 6 so that T_end = 3; clients with n = 1 (A) and 3 (B). alpha = 1, c = 3/4 and 1/4.

    Round 1 from 0 1 4 5: A pruned 5 and grew 6, B pruned 1 and grew 7.
      coordinate   0     1    4     5     6    7
      A            4    -1    2     -     3    -
      B            2     -    1   -.5     -   .4
      mean       2.5    -1   1.25 -.5     3   .4     (10/4, A alone, 5/4, B alone, A alone, B alone)
      the 4 largest: 6, 0, 4, 1. (Divided by all n, 5 (-.375) would stay before 1 (-.25).)
      biases (1 0 4) and (1 4 0): (1 3 1)
    Round 2 from 0 1 4 6: A pruned 1 and grew 9, B pruned 0 and grew 11, which did not move.
      coordinate   0     1    4     6     9   11
      A            1     -    1     1    -2    -
      B            -    .5    1    -1     -    0
      mean         1    .5    1   -.5    -2    0
      the 4 largest: 9, 0, 4, and of the equal 1 and 6 the lower.
    """
    method = FedDST(density=0.4, interval=1, rate=1.0)
    server = twelve_weights([0, 1, 4, 5], rounds=6)
    layer = server.layers["0"]
    assert [method.counts(server.model, t, 6) for t in range(4)] == [{}, {"0": 3}, {"0": 1}, {}]
    a = report({0: 4, 1: -1, 4: 2, 6: 3}, [1, 0, 4])
    b = report({0: 2, 4: 1, 5: -0.5, 7: 0.4}, [1, 4, 0])
    play(method, server, 1, [a, b])
    assert layer.topology.flat().tolist() == [0, 1, 4, 6]
    assert layer.values.tolist() == [2.5, -1.0, 1.25, 3.0]
    assert layer.bias.tolist() == [1.0, 3.0, 1.0]
    assert server.changed == pytest.approx(1 / 4)
    a = report({0: 1, 4: 1, 6: 1, 9: -2}, [0, 0, 0])
    b = report({1: 0.5, 4: 1, 6: -1, 11: 0}, [0, 0, 0])
    play(method, server, 2, [a, b])
    assert layer.topology.flat().tolist() == [0, 1, 4, 9]
    assert layer.values.tolist() == [1.0, 0.5, 1.0, -2.0]
    assert server.mask_version == 3


def test_between_adjustments_the_mean_is_fedavgs() -> None:
    method = FedDST(interval=2, rate=1.0)
    server = twelve_weights([0, 1, 4, 5], rounds=6)
    sections = {"parameters": Values(torch.arange(7.0)), "buffers": Values(torch.zeros(0))}
    play(method, server, 1, [sections, {**sections, "parameters": Values(torch.full((7,), 4.0))}])
    assert server.layers["0"].values.tolist() == [3.0, 3.25, 3.5, 3.75]
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 4, 5]
    assert server.mask_version == 1


def test_adjustment_rounds_end_before_half_of_the_rounds() -> None:
    """T = 60: T_end = 30, and at 30 itself c(t) = 0. With last = 50 the half does not matter."""
    model = sparsify(nn.Sequential(nn.Linear(40, 30)), {"0": 0.2})
    adjusted = {end: [t for t in range(60) if FedDST(last=end, rate=1.0).counts(model, t, 60)] for end in (0, 50)}
    assert adjusted == {0: [10, 20], 50: [10, 20, 30, 40]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": None}, "'mask' .* is missing"),
        ({"mask": Bitmap(torch.ones(12, dtype=torch.bool))}, "count is 12"),
        ({"mask": Bitmap(torch.ones(4, dtype=torch.bool))}, "size is 4"),
        ({"parameters": Values(torch.ones(6))}, "6"),
        ({"parameters": Values(torch.full((7,), float("nan")))}, "not finite"),
    ],
)
def test_bad_reports_are_refused(change: dict[str, Section | None], words: str) -> None:
    method = FedDST(interval=1, rate=1.0)
    sections = report({0: 1, 1: 1, 2: 1, 3: 1}, [0, 0, 0]) | change
    with pytest.raises(UpdateError, match=words):
        play(method, twelve_weights([0, 1, 4, 5], 6), 1, [{n: s for n, s in sections.items() if s is not None}])


def test_a_mask_is_refused_in_an_ordinary_round() -> None:
    with pytest.raises(UpdateError, match="not expected"):
        play(FedDST(interval=2), twelve_weights([0, 1, 4, 5], 6), 1, [report({0: 1, 1: 1, 2: 1, 3: 1}, [0, 0, 0])])


def toy_data(samples: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 4, 4, generator=generator)
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def toy_model(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU()]
    return nn.Sequential(*layers[:1], *([nn.BatchNorm2d(4)] if norm else []), *layers[1:], nn.Linear(8, 2))


def toy_loop(method: FedDST, rounds: int, norm: bool = True, **training: object) -> Loop:
    data = toy_data()
    parts = [np.arange(0, 8), np.arange(8, 24)]
    settings = Training(rounds, 2, batch_size=8, **training)  # type: ignore[arg-type]
    return Loop(Experiment(toy_model(norm), method, data, data, parts, settings))


def dense_twin(loop: Loop) -> tuple[nn.Module, dict[str, Tensor]]:
    twin = copy.deepcopy(loop.experiment.model).train()
    masks = {name: layer.topology.mask() for name, layer in loop.server.layers.items()}
    for name, layer in loop.server.layers.items():
        twin.get_submodule(name).weight.data = layer.dense_weight()
    return twin, masks


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_clients_round_equals_masked_dense_training(epochs: int) -> None:
    """A = floor(E / 2) epochs, prune |w|, gradient of the last minibatch, grow |g|, the other epochs: by plain torch.

    The twin's weights, gradients and momenta are masked dense tensors. E = 1: A = 0, with the first minibatch of
    the client's own draw.
    """
    method = FedDST(density=0.4, distribution="uniform", interval=1, last=9, rate=0.5)
    loop = toy_loop(method, 10, norm=False, epochs=epochs, lr=0.3, momentum=0.9)
    loop.open()
    model, (twin, masks) = copy.deepcopy(loop.server.model), dense_twin(loop)
    counts = method.counts(model, 1, 10)
    client = Client(1, 1, 0, model, loop.experiment.train, np.arange(8, 24), loop.experiment.training)
    train(client, method)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    x, y = next(client.batches("growth"))
    for epoch in range(epochs):
        if epoch == epochs // 2:
            for name, count in counts.items():
                w = twin.get_submodule(name).weight.data
                w[masks[name].logical_not()] = float("inf")
                masks[name].view(-1)[w.abs().flatten().topk(count, largest=False).indices] = False
                w[masks[name].logical_not()] = 0
            optimizer.zero_grad()
            functional.cross_entropy(twin(x), y).backward()
            for name, count in counts.items():
                p = twin.get_submodule(name).weight
                masks[name].view(-1)[p.grad.abs().masked_fill(masks[name], -1).flatten().topk(count).indices] = True
                if p in optimizer.state:
                    optimizer.state[p]["momentum_buffer"].mul_(p.data != 0)
        for x, y in client.batches(f"epoch {epoch}"):
            optimizer.zero_grad()
            functional.cross_entropy(twin(x), y).backward()
            for name, mask in masks.items():
                twin.get_submodule(name).weight.grad.mul_(mask)
            optimizer.step()
    for name, layer in sparse_layers(model).items():
        assert counts[name] > 0
        assert not torch.equal(layer.topology.mask(), loop.server.layers[name].topology.mask())
        assert torch.equal(layer.topology.mask(), masks[name])
        assert torch.allclose(layer.dense_weight(), twin.get_submodule(name).weight, atol=1e-5)


def test_the_growth_gradient_leaves_norm_statistics_alone() -> None:
    """Two rounds that differ in nothing but the adjustment before their only epoch, at learning rate 0."""
    moments = []
    for rate in (0.5, 1e-6):
        method = FedDST(density=0.4, distribution="uniform", interval=1, last=9, rate=rate, growth_batches=2)
        loop = toy_loop(method, 10, epochs=1, lr=0.0)
        loop.open()
        model = copy.deepcopy(loop.server.model).train()
        client = Client(1, 1, 0, model, loop.experiment.train, np.arange(8, 24), loop.experiment.training)
        method.begin(client)
        moments.append(exchange.buffers(model))
    assert torch.equal(moments[0], moments[1])
    assert torch.equal(moments[0], exchange.buffers(loop.server.model))


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(("granularity", "initial"), [(1, "random"), (4, "random"), (1, "snip")])
def test_masks_change_at_every_adjustment_and_keep_their_counts(granularity: int, initial: str, epochs: int) -> None:
    """T = 8, so T_end = 4 and rounds 1, 2 and 3 adjust."""
    method = FedDST(density=0.4, distribution="uniform", interval=1, rate=0.5, granularity=granularity, initial=initial)
    loop = toy_loop(method, 8, epochs=epochs, lr=0.2)
    loop.open()
    first = {name: layer.topology.nnz for name, layer in loop.server.layers.items()}
    before = exchange.mask(loop.server.model)
    for t in range(6):
        record = loop.round(t)
        after = exchange.mask(loop.server.model)
        assert record["rejected"] == []
        assert torch.equal(after, before) == (t not in (1, 2, 3))
        assert (record["mask_change"] > 0) == (t in (1, 2, 3))
        assert {name: layer.topology.nnz for name, layer in loop.server.layers.items()} == first
        for layer in loop.server.layers.values():
            layer.topology.validate()
            assert layer.granularity == granularity
        before = after


def test_bytes_are_those_of_the_table() -> None:
    """K values a round in both directions; the mask up when adjusting, and down to both clients the round after.

    The mask of 36 + 512 weights is 69 bytes. Both messages also hold the norm statistics, and the report its facts.
    """
    method = FedDST(density=0.4, distribution="uniform", interval=3, rate=0.5)
    loop = toy_loop(method, 12, epochs=2, lr=0.2)
    loop.open()
    records = [loop.round(t) for t in range(6)]
    up = [record["bytes_up"] for record in records]
    down = [record["bytes_down"] for record in records]
    model = loop.server.model
    weights = {"parameters": Values(exchange.parameters(model)), "buffers": Values(exchange.buffers(model))}
    facts = Values(np.zeros(2))
    bits = Bitmap(exchange.mask(model))
    ordinary = 2 * len(encode("report", 1, 0, {"facts": facts, **weights}))
    adjusting = encode("report", 1, 0, {"facts": facts, **weights, "mask": bits})
    assert up == [ordinary] * 3 + [2 * len(adjusting)] + [ordinary] * 2
    payload = sizes(adjusting)
    assert payload["parameters"] == 4 * loop.server.parameter_count
    assert payload["mask"] == (36 + 512 + 7) // 8
    message, mask = len(encode("weights", 1, -1, weights)), len(encode("mask", 1, -1, {"mask": bits}))
    assert down == [2 * (message + mask), 2 * message, 2 * message, 2 * message, 2 * (message + mask), 2 * message]


@pytest.mark.parametrize(
    ("rounds", "adjusted"), [(8, [1, 2, 3]), (7, [1, 2, 3]), (3, [1])], ids=["T_end 4", "T_end 3.5", "T_end 1.5"]
)
def test_rounds_before_half_of_them_adjust(rounds: int, adjusted: list[int]) -> None:
    """t < T_end = T / 2, the half of an odd T not rounded down."""
    model = sparsify(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 2)), 0.5)
    method = FedDST(density=0.5, interval=1, rate=0.2)
    assert [t for t in range(rounds) if method.counts(model, t, rounds)] == adjusted


def test_the_share_decays_to_half_of_an_odd_number_of_rounds() -> None:
    """T = 5, so T_end = 2.5: c(1) = (1 + cos .4 pi) / 2 = .6545 and c(2) = (1 + cos .8 pi) / 2 = .0955 of 800 weights."""
    model = sparsify(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 2)), 0.5)
    method = FedDST(density=0.5, interval=1, rate=1.0)
    assert [method.counts(model, t, 5).get("0") for t in range(4)] == [None, 523, 76, None]
