import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, exchange
from fedsparse.federated.meter import _cpu_meter
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import FedTiny
from fedsparse.nn import sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.wire import Pairs, Section, Values, encode


def twelve_weights(active: list[int]) -> Server:
    """A server with one 3 x 4 linear layer and two clients of 1 and 3 samples."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    server = Server(model, 0, ["0"], 1, (4,), [1, 3])
    server.set_masks({"0": from_groups(torch.tensor(active), (3, 4)).mask()})
    return server


def report(weights: list[float], grown: dict[int, float]) -> dict[str, Section]:
    pairs = Pairs(torch.tensor(list(grown)), torch.tensor(list(grown.values())), 12)
    return {
        "parameters": Values(torch.tensor(weights, dtype=torch.float32)),
        "buffers": Values(torch.zeros(0)),
        "growth": pairs,
    }


def play(method: FedTiny, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
    """Send two reports through encode, judge, digest and sum, and update the server."""
    total = Total(declared=4)
    for id, sections in enumerate(reports):
        facts = Values(np.array([server.samples[id], 0.0]))
        data = encode("report", t, id, {"facts": facts, **sections})
        said, sent = judge(data, "report", t, id, server.samples[id], method.expect(server, t))
        total.add(id, said.samples, method.digest(server, sent, t))
    method.update(server, total, t)


def test_two_adjustments_by_hand() -> None:
    """K = 6 of 12 weights, rate .2, dT = 1, T_end = 4, clients with n = 1 (A) and 3 (B): mean = (A + 3 B) / 4.

    Round 1: c = (1 + cos(pi/4)) / 2 = .8536, a = floor(.2 * 1.707 * 6) = floor(2.05) = 2.
      active       0    1    4    5    8    9
      A            4   -1    2   .8    1   -3
      B            4    1   -2    0    1   -3
      mean         4   .5   -1   .2    1   -3      two lowest |w|: 5 (.2) and 1 (.5)
      g~: 2: 4/4 = 1; 3: (-1 + 3 * 2)/4 = 1.25; 6: 3 * 1.2/4 = .9; 7: 1.5/4 = .375      grown: 3 and 2
      (client A alone would grow 2 and 7; B alone 3 and 6.)
      new mask 0 2 3 4 8 9 with 4 0 0 -1 1 -3
    Round 2: c = 1/2, a = floor(.2 * 6) = 1.
      mean of weight 2: (.1 + 3 * .3)/4 = .25, of 3: (-.5 - 3 * .1)/4 = -.2, the others 1: 3 is pruned
      g~: 1: 1/4 = .25; 5: -3 * .5/4 = -.375: 5 is grown
      new mask 0 2 4 5 8 9 with 1 .25 1 0 1 1
    """
    method = FedTiny(density=0.5, interval=1, last=4, rate=0.2)
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    layer = server.layers["0"]
    play(
        method,
        server,
        1,
        [report([4, -1, 2, 0.8, 1, -3], {2: 4.0, 3: -1.0}), report([4, 1, -2, 0, 1, -3], {3: 2.0, 6: 1.2})],
    )
    assert layer.topology.flat().tolist() == [0, 2, 3, 4, 8, 9]
    assert layer.values.tolist() == [4.0, 0.0, 0.0, -1.0, 1.0, -3.0]
    assert server.changed == pytest.approx(2 / 6)
    play(
        method,
        server,
        2,
        [report([1, 0.1, -0.5, 1, 1, 1], {1: 1.0}), report([1, 0.3, -0.1, 1, 1, 1], {5: -0.5})],
    )
    assert layer.topology.flat().tolist() == [0, 2, 4, 5, 8, 9]
    assert torch.allclose(layer.values, torch.tensor([1.0, 0.25, 1.0, 0.0, 1.0, 1.0]))
    assert server.mask_version == 3


def test_between_adjustments_the_mask_stays() -> None:
    method = FedTiny(density=0.5, interval=2, last=4)
    server = twelve_weights([0, 1, 4])
    sections = {"parameters": Values(torch.ones(3)), "buffers": Values(torch.zeros(0))}
    play(method, server, 1, [sections, sections])
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 4]
    assert server.mask_version == 1


@pytest.mark.parametrize(
    ("grown", "words"),
    [({0: 1.0, 2: 1.0}, "active already"), ({2: 1.0}, "count"), ({2: 1.0, 3: 1.0, 6: 1.0}, "count")],
)
def test_pairs_that_are_not_candidates_are_refused(grown: dict[int, float], words: str) -> None:
    method = FedTiny(density=0.5, interval=1, last=4, rate=0.2)
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    with pytest.raises(UpdateError, match=words):
        play(method, server, 1, [report([1] * 6, grown)])


def test_blocks_take_turns_from_the_output_to_the_input() -> None:
    """Six layers in 5 blocks are 2, 1, 1, 1, 1 layers: round dT adjusts the last, round 5 dT the first two."""
    layers = [nn.Linear(8, 8, bias=False) for _ in range(7)]
    model = nn.Sequential(*layers)
    method = FedTiny(density=0.5, interval=10, last=100, rate=0.4)
    names = method.prunes(model)
    server = Server(model, 0, names, 1, (8,), [1])
    server.set_masks({name: torch.eye(8, dtype=torch.bool) for name in names})
    adjusted = [list(method.counts(model, t)) for t in (10, 20, 30, 40, 50, 60)]
    assert adjusted == [["5"], ["4"], ["3"], ["2"], ["0", "1"], ["5"]]
    assert method.counts(model, 15) == {}
    assert method.counts(model, 110) == {}


def toy_data(samples: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 4, 4, generator=generator)
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def toy_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def toy_loop(method: FedTiny, rounds: int = 4) -> Loop:
    data = toy_data()
    parts = [np.arange(0, 8), np.arange(8, 24)]
    return Loop(Experiment(toy_model(), method, data, data, parts, Training(rounds, 2, 1, 8)))


def test_a_client_sends_the_largest_inactive_gradients_of_its_batch() -> None:
    method = FedTiny(density=0.3, distribution="uniform", interval=1, last=4, rate=0.4, blocks=1)
    loop = toy_loop(method)
    loop.open()
    model = copy.deepcopy(loop.server.model)
    client = Client(1, 1, 0, model, loop.experiment.train, np.arange(8, 24), Training(batch_size=8))
    model.train()
    growth = method.report(client)["growth"]
    counts = method.counts(model, 1)
    starts = exchange.offsets(model)
    dense = copy.deepcopy(loop.experiment.model).train()
    for name, layer in sparse_layers(model).items():
        dense.get_submodule(name).weight.data = layer.dense_weight()
    x, y = next(client.batches("growth"))
    functional.cross_entropy(dense(x), y).backward()
    for name, layer in sparse_layers(model).items():
        g = dense.get_submodule(name).weight.grad.flatten()
        inactive = g.abs().masked_fill(layer.topology.mask().flatten(), -1.0)
        expected = set((inactive.topk(counts[name]).indices + starts[name]).tolist())
        inside = [i for i in growth.indices.tolist() if starts[name] <= i < starts[name] + layer.topology.numel]
        assert set(inside) == expected


def test_the_candidate_of_lowest_loss_wins_with_refreshed_statistics() -> None:
    """Every candidate's loss is computed again here, by hand: average statistics, then p-weighted loss."""
    method = FedTiny(density=0.3, pool=5)
    loop = toy_loop(method)
    candidates = method._candidates(loop.server)
    losses, statistics = [], []
    for masks in candidates:
        moments = []
        for part in loop.experiment.parts:
            model = copy.deepcopy(loop.experiment.model)
            for name, mask in masks.items():
                model.get_submodule(name).weight.data.mul_(mask)
            model[1].momentum = None
            client = Client(
                0 if len(part) == 8 else 1, 0, 0, model, loop.experiment.train, part, Training(batch_size=8)
            )
            with torch.no_grad():
                for x, _ in client.batches("refresh"):
                    model(x)
            moments.append((model[1].running_mean.clone(), model[1].running_var.clone()))
        mean = (moments[0][0] + 2 * moments[1][0]) / 3
        var = (moments[0][1] + 2 * moments[1][1]) / 3
        model[1].running_mean.copy_(mean)
        model[1].running_var.copy_(var)
        model.eval()
        x, y = loop.experiment.train.batch(np.arange(24))
        losses.append(functional.cross_entropy(model(x), y).item())
        statistics.append(mean)
    loop.open()
    best = int(np.argmin(losses))
    chosen = {name: layer.topology.mask() for name, layer in loop.server.layers.items()}
    assert all(torch.equal(chosen[name], candidates[best][name]) for name in chosen)
    assert torch.allclose(loop.server.model[1].running_mean, statistics[best], atol=1e-5)
    assert len({tuple(int(m.sum()) for m in c.values()) for c in candidates}) > 1, "layer densities differ"
    total = sum(m.numel() for m in candidates[0].values())
    assert all(sum(int(m.sum()) for m in c.values()) == round(0.3 * total) for c in candidates)


@pytest.mark.parametrize("granularity", [1, 4])
def test_masks_change_at_every_adjustment_and_keep_their_counts(granularity: int) -> None:
    method = FedTiny(
        density=0.4, distribution="uniform", interval=1, last=5, rate=0.5, blocks=2, granularity=granularity
    )
    loop = toy_loop(method, rounds=4)
    loop.open()
    first = {name: layer.topology.nnz for name, layer in loop.server.layers.items()}
    before = exchange.mask(loop.server.model)
    for t in range(4):
        record = loop.round(t)
        after = exchange.mask(loop.server.model)
        assert record["rejected"] == []
        assert torch.equal(after, before) == (t == 0)
        assert (record["mask_change"] > 0) == (t > 0)
        assert {name: layer.topology.nnz for name, layer in loop.server.layers.items()} == first
        for layer in loop.server.layers.values():
            layer.topology.validate()
            assert layer.granularity == granularity
        before = after


def test_without_batch_norm_the_choice_is_by_loss_alone() -> None:
    data = toy_data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    loop = Loop(Experiment(model, FedTiny(density=0.3), data, data, [np.arange(24)], Training(1, 1, 1, 8)))
    loop.open()
    assert loop.server.mask_version == 1
    assert loop.server.layers["1"].topology.nnz == round(0.3 * 128)


def test_neither_side_holds_a_dense_gradient_of_the_model() -> None:
    """Two 2048 x 2048 layers: their gradient is 33.6 MB dense. Growth on clients and the update stay below half of it."""
    layers = [nn.Linear(2048, 2048, bias=False), nn.Linear(2048, 2048, bias=False), nn.Linear(2048, 2)]
    data = Dataset("toy", torch.randn(16, 1, 32, 64), torch.arange(16) % 2, 2, (0.0,), (1.0,))
    method = FedTiny(density=0.01, interval=1, last=4, rate=0.4, blocks=1, pool=1)
    model = nn.Sequential(nn.Flatten(), *layers)
    loop = Loop(Experiment(model, method, data, data, [np.arange(8), np.arange(8, 16)], Training(2, 2, 1, 8)))
    loop.open()
    loop.round(0)
    meter = _cpu_meter()
    before = meter.fedsparse_meter_live()
    meter.fedsparse_meter_reset()
    record = loop.round(1)
    assert record["mask_change"] > 0
    assert meter.fedsparse_meter_peak() - before < 2 * 2048 * 2048 * 4 / 2
