import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, exchange
from fedsparse.federated.seeds import numpy_generator
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import FedRTS
from fedsparse.nn import sparse_layers
from fedsparse.pruning import active_groups, from_groups
from fedsparse.wire import Indices, Section, Values, encode, sizes


def one_layer(method: FedRTS, active: list[int], shape: tuple[int, int] = (3, 4), seed: int = 0) -> Server:
    """A server with one linear layer and two clients of 1 and 3 samples."""
    rows, columns = shape
    V = method.granularity
    server = Server(nn.Sequential(nn.Linear(columns, rows, bias=False)), seed, ["0"], V, (columns,), [1, 3])
    method.start(server)
    server.layers["0"].set_topology(from_groups(torch.tensor(active), shape, V))
    return server


def report(weights: list[float], growth: list[int] | None = None, size: int = 12) -> dict[str, Section]:
    sections: dict[str, Section] = {
        "parameters": Values(torch.tensor(weights, dtype=torch.float32)),
        "buffers": Values(torch.zeros(0)),
    }
    if growth is not None:
        sections["growth"] = Indices(torch.tensor(growth, dtype=torch.int64), size)
    return sections


def play(method: FedRTS, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
    """Send two reports through encode, judge, digest and sum, and update the server."""
    total = Total(declared=4)
    for id, sections in enumerate(reports):
        facts = Values(np.array([server.samples[id], 0.0]))
        data = encode("report", t, id, {"facts": facts, **sections})
        said, sent = judge(data, "report", t, id, server.samples[id], method.expect(server, t))
        total.add(id, said.samples, method.digest(server, sent, t))
    method.update(server, total, t)


def posteriors(server: Server) -> list[tuple[float, float]]:
    return list(zip(server.state["alpha/0"].tolist(), server.state["beta/0"].tolist()))


def test_posteriors_and_two_adjustments_by_hand() -> None:
    """K = 4 of 12 weights, active 0 1 4 5; dT = 2, T_end = 4, alpha_adj = .6, gamma = .5, lambda = 10; n = 1 (A), 3 (B).

    Round 1: k = floor(.6 * .8536 * 4) = 2, kappa = 2.
                0     1     4     5
      A         4    -1     2     3     keeps 0 5
      B         1    -3     2    -1     keeps 1 4
      mean    7/4 -10/4     2     0     keeps 1 4
      X      .125  .875  .875  .125     .5 [mean keeps] + .5 (.25 [A keeps] + .75 [B keeps])
      a, b = 1 + 10 X, 11 - 10 X: (2.25, 9.75) (9.75, 2.25) (9.75, 2.25) (2.25, 9.75), the others (1, 1)
    Round 2: k = floor(.6 * .5 * 4) = 1, kappa = 3; A would grow 2, B would grow 8.
      A         1     2     3     4     keeps 1 4 5
      B         4    -3     2     1     keeps 0 1 4
      mean   13/4  -7/4   9/4   7/4     keeps 0 4, and of the equal 1 and 5 the lower
      X      .875     1     1  .125     inactive 2: .25 + .5 * .25 = .375; 8: .25 + .5 * .75 = .625; the others .25
      a, b   0: (11, 11)  1 and 4: (19.75, 2.25)  5: (3.5, 18.5)  2: (4.75, 7.25)  8: (7.25, 4.75)  others (3.5, 8.5)
    Then the 4 highest of one draw from each.
    Round 4 is T_end: k = 0, no index is sent, every active weight is kept by all (X = 1), inactive ones have X = .25.
    """
    method = FedRTS(density=0.4, interval=2, last=4, rate=0.6)
    server = one_layer(method, [0, 1, 4, 5])
    layer = server.layers["0"]
    assert [method.challengers(server.model, t)["0"] for t in range(5)] == [2, 2, 1, 0, 0]
    play(method, server, 1, [report([4, -1, 2, 3]), report([1, -3, 2, -1])])
    assert layer.values.tolist() == [1.75, -2.5, 2.0, 0.0]
    low, high = (2.25, 9.75), (9.75, 2.25)
    assert posteriors(server) == [low, high, (1, 1), (1, 1), high, low] + [(1, 1)] * 6
    assert layer.topology.flat().tolist() == [0, 1, 4, 5]
    play(method, server, 2, [report([1, 2, 3, 4], [2]), report([4, -3, 2, 1], [8])])
    rest = (3.5, 8.5)
    expected = [(11, 11), (19.75, 2.25), (4.75, 7.25), rest, (19.75, 2.25), (3.5, 18.5), rest, rest, (7.25, 4.75)]
    assert posteriors(server) == expected + [rest] * 3
    drawn = numpy_generator(0, "thompson sampling", 2).beta(*np.array(expected + [rest] * 3).T)
    chosen = sorted(np.argsort(-drawn)[:4].tolist())
    mean = {0: 3.25, 1: -1.75, 4: 2.25, 5: 1.75}
    assert layer.topology.flat().tolist() == chosen
    assert layer.values.tolist() == [mean.get(i, 0.0) for i in chosen]
    assert set(chosen) != {0, 1, 4, 5}
    before = posteriors(server)
    play(method, server, 4, [report([1, 1, 1, 1], [])] * 2)
    added = [(10, 0) if i in chosen else (2.5, 7.5) for i in range(12)]
    assert posteriors(server) == [(a + x, b + y) for (a, b), (x, y) in zip(before, added)]
    mask = layer.topology.flat().tolist()
    play(method, server, 5, [report([1, 1, 1, 1])] * 2)
    assert posteriors(server) == [(a + x, b + y) for (a, b), (x, y) in zip(before, added)]
    assert layer.topology.flat().tolist() == mask


def test_masks_are_drawn_with_the_posteriors_chances() -> None:
    """Beta(2, 1) against Beta(1, 1) for one place: P = integral of x * 2x = 2/3. 900 draws: two sigma are .032."""
    method = FedRTS(interval=1)
    server = one_layer(method, [1], (2, 1))
    server.state["alpha/0"] = torch.tensor([2.0, 1.0])
    wins = sum(method._sample(server, t)["0"].flat().tolist() == [0] for t in range(900))
    assert wins / 900 == pytest.approx(2 / 3, abs=0.04)


def test_a_draw_depends_on_seed_and_round_alone() -> None:
    method = FedRTS()
    draws = ((0, 10), (0, 10), (0, 20), (1, 10))
    masks = [method._sample(one_layer(method, [0, 1, 4, 5], (6, 8), seed), t)["0"].flat() for seed, t in draws]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])


def test_posteriors_of_groups_by_hand() -> None:
    """V = 2, (4, 3): 6 groups, active 1 and 3, k = 1. Summed |w| of A: 1 + 2, 5 + 1; of B: 4 + 4, 1 + 0; mean below.

    Values are by row: (0, 1) (1, 1) | (2, 0) (3, 0), groups 1 1 3 3. Mean: 13/4 14/4 | 8/4 1/4, group 1 is kept.
    X of 1: .5 + .5 * .75 = .875; of 3: .5 * .25 = .125. A grows 0, B grows 0: X = .25 + .5 = .75; the others .25.
    """
    method = FedRTS(density=0.4, interval=2, last=4, rate=1.0, granularity=2)
    server = one_layer(method, [1, 3], (4, 3))
    play(method, server, 2, [report([1, -2, 5, 1], [0], 6), report([4, 4, 1, 0], [0], 6)])
    assert server.state["alpha/0"].tolist() == [8.5, 9.75, 3.5, 2.25, 3.5, 3.5]
    assert server.state["beta/0"].tolist() == [3.5, 2.25, 8.5, 9.75, 8.5, 8.5]
    layer = server.layers["0"]
    layer.topology.validate()
    drawn = numpy_generator(0, "thompson sampling", 2).beta(
        [8.5, 9.75, 3.5, 2.25, 3.5, 3.5], [3.5, 2.25, 8.5, 9.75, 8.5, 8.5]
    )
    assert sorted(np.argsort(-drawn)[:2]) == [0, 1], "of the posteriors (9.75, 2.25) and (8.5, 3.5)"
    assert layer.topology.granularity == 2
    assert active_groups(layer.topology).tolist() == [0, 1], "3 went and 0 came"
    assert layer.topology.flat().tolist() == [0, 1, 3, 4]
    assert layer.values.tolist() == [0.0, 3.25, 0.0, 2.5], "the means of group 1: (1 + 3 * 4) / 4 and (-2 + 3 * 4) / 4"


@pytest.mark.parametrize(
    ("growth", "words"),
    [([4], "active already"), ([2, 3], "count is 2"), (None, "missing")],
)
def test_indices_that_are_not_candidates_are_refused(growth: list[int] | None, words: str) -> None:
    method = FedRTS(density=0.4, interval=2, last=4, rate=0.6)
    server = one_layer(method, [0, 1, 4, 5])
    with pytest.raises(UpdateError, match=words):
        play(method, server, 2, [report([1, 1, 1, 1], growth)])


def test_indices_are_refused_between_adjustments_and_in_a_wrong_layer() -> None:
    method = FedRTS(interval=2, last=4, rate=0.6)
    with pytest.raises(UpdateError, match="not expected"):
        play(method, one_layer(method, [0, 1, 4, 5]), 1, [report([1, 1, 1, 1], [2])])
    server = Server(
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)), 0, ["0", "1"], 1, (3,), [1]
    )
    server.set_masks({"0": torch.arange(12).view(4, 3) < 4, "1": torch.arange(12).view(3, 4) < 4})
    sections = report([1] * 8, [5, 6], 24)
    with pytest.raises(UpdateError, match="growth has 2 weights in 0, not 1"):
        method.digest(server, sections, 2)


def toy_data(samples: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 4, 4, generator=generator)
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def toy_model(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU()]
    return nn.Sequential(*layers[:1], *([nn.BatchNorm2d(4)] if norm else []), *layers[1:], nn.Linear(8, 2))


def toy_loop(method: FedRTS, rounds: int, norm: bool = True) -> Loop:
    data = toy_data()
    parts = [np.arange(0, 8), np.arange(8, 24)]
    return Loop(Experiment(toy_model(norm), method, data, data, parts, Training(rounds, 2, batch_size=8)))


@pytest.mark.parametrize("batches", [1, 2])
def test_a_client_names_its_largest_inactive_gradients(batches: int) -> None:
    method = FedRTS(density=0.3, distribution="uniform", interval=1, growth_batches=batches)
    loop = toy_loop(method, 4)
    loop.open()
    model = copy.deepcopy(loop.server.model).train()
    client = Client(1, 1, 0, model, loop.experiment.train, np.arange(8, 24), Training(batch_size=8))
    growth = method.report(client)["growth"].indices
    counts, starts = method.counts(model, 1), exchange.offsets(model)
    dense = copy.deepcopy(loop.experiment.model).train()
    for name, layer in sparse_layers(model).items():
        dense.get_submodule(name).weight.data = layer.dense_weight()
    for _, (x, y) in zip(range(batches), client.batches("growth")):
        functional.cross_entropy(dense(x), y).backward()  # batches of 8: the sum has the order of the mean
    expected: set[int] = set()
    for name, layer in sparse_layers(model).items():
        g = dense.get_submodule(name).weight.grad.abs().masked_fill(layer.topology.mask(), -1)
        expected |= set((g.flatten().topk(counts[name]).indices + starts[name]).tolist())
    assert set(growth.tolist()) == expected
    assert torch.equal(exchange.buffers(model), exchange.buffers(loop.server.model))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("granularity", "initial"), [(1, "random"), (4, "random"), (1, "snip")])
def test_masks_change_at_every_adjustment_and_keep_their_counts(granularity: int, initial: str, norm: bool) -> None:
    method = FedRTS(density=0.4, distribution="uniform", interval=1, last=9, granularity=granularity, initial=initial)
    loop = toy_loop(method, 5, norm)
    loop.open()
    initial = {}
    for name, layer in loop.server.layers.items():
        initial[name] = torch.zeros(layer.topology.numel // granularity)
        initial[name][active_groups(layer.topology)] = 1
    first = {name: layer.topology.nnz for name, layer in loop.server.layers.items()}
    before = exchange.mask(loop.server.model)
    for t in range(5):
        record = loop.round(t)
        after = exchange.mask(loop.server.model)
        assert record["rejected"] == []
        assert torch.equal(after, before) == (t == 0)
        assert (record["mask_change"] > 0) == (t > 0)
        assert {name: layer.topology.nnz for name, layer in loop.server.layers.items()} == first
        for name, layer in loop.server.layers.items():
            layer.topology.validate()
            assert layer.granularity == granularity
            learned = loop.server.state[f"alpha/{name}"] + loop.server.state[f"beta/{name}"]
            assert torch.allclose(learned, 2 + 10 * (t + initial[name]), atol=1e-3), (
                "round 0 is of active weights alone"
            )
        before = after


def test_bytes_are_those_of_the_table() -> None:
    """K values a round in both directions; k indices up when adjusting, the mask down to both the round after."""
    method = FedRTS(density=0.4, distribution="uniform", interval=3, last=9, rate=0.2)
    loop = toy_loop(method, 5)
    loop.open()
    model = loop.server.model
    counts = method.counts(model, 3)
    assert counts == {"0": int(0.2 * 0.75 * 14), "4": int(0.2 * 0.75 * 205)}
    records = [loop.round(t) for t in range(5)]
    weights = {"parameters": Values(exchange.parameters(model)), "buffers": Values(exchange.buffers(model))}
    sections = {"facts": Values(np.zeros(2)), **weights}
    ordinary = len(encode("report", 1, 0, sections))
    up = [record["bytes_up"] for record in records]
    assert [up[t] for t in (0, 1, 2, 4)] == [2 * ordinary] * 4
    indices = Indices(torch.arange(sum(counts.values())), 36 + 512)
    adjusting = encode("report", 1, 0, {**sections, "growth": indices})
    without = len(adjusting) - sizes(adjusting)["growth"]
    assert 2 * without < up[3] <= 2 * (without + sum(counts.values()))
    message, bits = len(encode("weights", 1, -1, weights)), records[0]["bytes_down"] // 2
    assert [record["bytes_down"] for record in records[1:4]] == [2 * message] * 3
    assert 0 < bits - message <= (36 + 512 + 7) // 8 + 200
    assert 2 * message < records[4]["bytes_down"] <= 2 * bits
