import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, coordinates, exchange
from fedsparse.federated.client import train
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import FedSGC
from fedsparse.nn import sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.wire import Bitmap, Pairs, Section, Values, encode, sizes


def twelve_weights(method: FedSGC, rounds: int) -> Server:
    """A server with one 3 x 4 linear layer, active 0 1 4 5, and three clients of 1, 3 and 4 samples."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    server = Server(model, 0, ["0"], 1, (4,), [1, 3, 4], training=Training(rounds))
    method.start(server)
    server.layers["0"].set_topology(from_groups(torch.tensor([0, 1, 4, 5]), (3, 4)))
    server.load(torch.tensor([2.0, -2.0, 2.0, 1.0]), torch.zeros(0))
    return server


def report(weights: dict[int, float], gradients: dict[int, float] | None = None) -> dict[str, Section]:
    """A report of an adjustment round, or without gradients of an ordinary one."""
    parameters = {
        "parameters": Values(torch.tensor([*weights.values()], dtype=torch.float32)),
        "buffers": Values(torch.zeros(0)),
    }
    if gradients is None:
        return parameters
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(weights)] = True
    sizes = torch.tensor(list(gradients.values()), dtype=torch.float32)
    pairs = Pairs(torch.tensor(list(gradients)), sizes, 12, wire="bf16")
    return {**parameters, "mask": Bitmap(mask), "gradients": pairs}


def play(method: FedSGC, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
    """Send the reports of clients 0 and 1 through encode, judge, digest and sum, and update the server."""
    total = Total(declared=4)
    for id, sections in enumerate(reports):
        facts = Values(np.array([server.samples[id], 0.0]))
        data = encode("report", t, id, {"facts": facts, **sections})
        said, sent = judge(data, "report", t, id, server.samples[id], method.expect(server, t))
        total.add(id, said.samples, method.digest(server, sent, t))
    method.update(server, total, t)


def shown(server: Server) -> str:
    return "".join("-0+"[int(d) + 1] for d in server.state["direction"])


def test_two_adjustments_and_the_rounds_after_them_by_hand() -> None:
    """K = 4 of 12, dT = 2, T_end = 8, alpha = 1; A has n = 1, B 3, and C, never sampled, 4: w_t counts 4.

    D = sign(w_{t+1} - w_t) of the server's models, and sign(-sum p_k g) at what nobody had active.
    Round 2: k = floor(.8536 * 4) = 3, w_t = 2 -2 2 1 at 0 1 4 5.
      coordinate   0     1     4     5     6     7
      A            4     3     2     -     3     -
      B            2     -     1   -.5     -    .5
      C, w_t       2    -2     2     1     -     -
      mean      18/8  -5/5  13/8 2.5/7     3    .5     the 4 largest: 6, 0, 4, 1
      w_{t+1}   2.25    -1 1.625     0     3     0
      moved        +     +     -     -     +     0     5 was pruned, from 1 to 0; 7 never came
      g of A       2: 4   7: 5  8: -8;  of B  2: -1  8: 2  9: .5
      nobody has   2: (4 - 3)/4, down   8: (-8 + 6)/4, up   9: 1.5/4, down   (7 was B's: its g counts for nothing)
      D            ++-0--+0+-00
    Round 3, at 0 1 4 6: A moved by 8 0 8 -8, B by 0 0 -8 0 and C not, the mean (A + 3 B + 4 C)/8 by 1 0 -2 -1.
      D            +0-0-0-0+-00     5 was 0 and is 0; 2, 8 and 9 keep what gradients gave
    Round 4: k = floor(.5 * 4) = 2, w_t = 3.25 -1 -.375 2 at 0 1 4 6.
      coordinate   0     1     4     6     7
      A         3.25    -1   6.5     -     4
      B         3.25    -1     -     2    -4
      C         3.25    -1 -.375     2     -
      mean      3.25    -1   5/5     2    -2     the 4 largest: 0, 6, 7, and of the equal 1 and 4 the lower
      w_{t+1}   3.25    -1     0     2    -2
      moved        0     0     +     0     -
      g of A       2: -1  6: 5;  of B  2: 1  11: 3:  2: (-1 + 3)/4 down, 11 down, 6 is B's
      D            00-0+00-000-     8 and 9, of round 2, are gone
    Round 5, at 0 1 6 7: all stay but 1, which A moves by -8 and B by 0: the mean by -1.
      D            0--00000000-     4 was pruned and is 0
    """
    method = FedSGC(density=0.4, interval=2, last=8, rate=1.0)
    server = twelve_weights(method, 20)
    layer = server.layers["0"]
    assert shown(server) == "0" * 12
    assert method.broadcast(server, 1) == {}
    a = report({0: 4, 1: 3, 4: 2, 6: 3}, {2: 4, 7: 5, 8: -8})
    b = report({0: 2, 4: 1, 5: -0.5, 7: 0.5}, {2: -1, 8: 2, 9: 0.5})
    play(method, server, 2, [a, b])
    assert layer.topology.flat().tolist() == [0, 1, 4, 6]
    assert layer.values.tolist() == [2.25, -1.0, 1.625, 3.0]
    assert shown(server) == "++-0--+0+-00"
    play(method, server, 3, [report({0: 10.25, 1: -1, 4: 9.625, 6: -5}), report({0: 2.25, 1: -1, 4: -6.375, 6: 3})])
    assert layer.values.tolist() == [3.25, -1.0, -0.375, 2.0]
    assert shown(server) == "+0-0-0-0+-00"
    sent = method.broadcast(server, 4)
    assert list(sent) == ["direction"]
    assert sent["direction"].signs.tolist() == [1, 0, -1, 0, -1, 0, -1, 0, 1, -1, 0, 0]
    a = report({0: 3.25, 1: -1, 4: 6.5, 7: 4}, {2: -1, 6: 5})
    b = report({0: 3.25, 1: -1, 6: 2, 7: -4}, {2: 1, 11: 3})
    play(method, server, 4, [a, b])
    assert layer.topology.flat().tolist() == [0, 1, 6, 7]
    assert layer.values.tolist() == [3.25, -1.0, 2.0, -2.0]
    assert shown(server) == "00-0+00-000-"
    play(method, server, 5, [report({0: 3.25, 1: -9, 6: 2, 7: -2}), report({0: 3.25, 1: -1, 6: 2, 7: -2})])
    assert layer.values.tolist() == [3.25, -2.0, 2.0, -2.0]
    assert shown(server) == "0--00000000-"


@pytest.mark.parametrize(("idle", "ordinary", "adjusted"), [("adjusting", 6.0, 4.0), ("never", 6.0, 6.0)])
def test_idle_clients_count_where_they_are_said_to(idle: str, ordinary: float, adjusted: float) -> None:
    """All weights of A and B are 6, all of C 2: (4 * 6 + 4 * 2)/8 = 4 with C and 6 without."""
    method = FedSGC(interval=2, last=8, rate=1.0, idle=idle)  # type: ignore[arg-type]
    for t, mean in ((1, ordinary), (2, adjusted)):
        server = twelve_weights(method, 20)
        server.load(torch.full((4,), 2.0), torch.zeros(0))
        sections = report(dict.fromkeys((0, 1, 4, 5), 6.0), {2: 1.0, 3: 1.0, 6: 1.0} if t == 2 else None)
        play(method, server, t, [sections, sections])
        assert server.layers["0"].values.tolist() == [mean] * 4


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        ({2: 1.0, 3: 1.0, 4: 1.0}, "active already"),
        ({2: 1.0, 3: 1.0}, "count is 2"),
        ({2: 1.0, 3: 1.0, 5: float("nan")}, "not finite"),
    ],
)
def test_gradients_that_are_not_of_inactive_weights_are_refused(gradients: dict[int, float], words: str) -> None:
    """The mask 0 1 4 6 is the client's own: 5 is inactive in it, 4 is not."""
    method = FedSGC(interval=2, last=8, rate=1.0)
    server = twelve_weights(method, 20)
    weights = {0: 1.0, 1: 1.0, 4: 1.0, 6: 1.0}
    play(method, server, 2, [report(weights, {2: 1.0, 3: 1.0, 5: 1.0})])
    with pytest.raises(UpdateError, match=words):
        play(method, server, 2, [report(weights, gradients)])


def toy_data(samples: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 4, 4, generator=generator)
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def toy_model(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU()]
    return nn.Sequential(*layers[:1], *([nn.BatchNorm2d(4)] if norm else []), *layers[1:], nn.Linear(8, 2))


def toy_loop(method: FedSGC, rounds: int, norm: bool = True, **training: object) -> Loop:
    data = toy_data()
    parts = [np.arange(0, 8), np.arange(8, 24), np.arange(0, 24, 2)]
    settings = Training(rounds, **{"clients_per_round": 2, "batch_size": 8, **training})  # type: ignore[arg-type]
    return Loop(Experiment(toy_model(norm), method, data, data, parts, settings))


def by_size(candidates: list[int], size: Tensor, count: int) -> list[int]:
    """The `count` largest, ties to the lower index."""
    return sorted(candidates, key=lambda i: (-float(size[i]), i))[:count]


@pytest.mark.parametrize(("prune_guided", "grow_guided"), [(0.5, 0.5), (1.0, 0.25), (0.0, 1.0)])
def test_guided_pruning_and_growth_by_their_definitions(prune_guided: float, grow_guided: float) -> None:
    """One epoch of plain masked dense training, then sets: who disagrees, who agrees, who is largest of the rest.

    D is random over -1, 0, 1. The second epoch does not change the mask, so the masks are compared after it.
    """
    method = FedSGC(
        density=0.4, interval=1, last=9, rate=0.5, prune_guided=prune_guided, grow_guided=grow_guided, distribution="er"
    )
    loop = toy_loop(method, 10, norm=False, epochs=2, lr=0.3)
    loop.open()
    server, model, twin = loop.server, copy.deepcopy(loop.server.model), copy.deepcopy(loop.experiment.model)
    generator = torch.Generator().manual_seed(1)
    server.state["direction"] = torch.randint(-1, 2, server.state["direction"].shape, generator=generator).to(
        torch.int8
    )
    received = {"parameters": Values(exchange.parameters(model)), **method.broadcast(server, 1)}
    part, training = np.arange(8, 24), loop.experiment.training
    client = Client(1, 1, 0, model, loop.experiment.train, part, training, received=received)
    train(client, method)

    masks = {name: layer.topology.mask().clone() for name, layer in server.layers.items()}
    starts = {name: layer.dense_weight() for name, layer in server.layers.items()}
    for name, start in starts.items():
        twin.get_submodule(name).weight.data = start.clone()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    for x, y in client.batches("epoch 0"):
        optimizer.zero_grad()
        functional.cross_entropy(twin(x), y).backward()
        for name, mask in masks.items():
            twin.get_submodule(name).weight.grad.mul_(mask)
        optimizer.step()
    directions = coordinates.split(server.model, server.state["direction"])
    counts = method.counts(server.model, 1, 10)
    for name, k in counts.items():
        w, d = twin.get_submodule(name).weight.data.flatten(), directions[name].flatten()
        moved = (w - starts[name].flatten()).sign()
        active = masks[name].flatten().nonzero().flatten().tolist()
        first = by_size([i for i in active if moved[i] * d[i] < 0], -w.abs(), int(prune_guided * k))
        pruned = first + by_size([i for i in active if i not in first], -w.abs(), k - len(first))
        masks[name].view(-1)[pruned] = False
        w[pruned] = 0
    optimizer.zero_grad()
    functional.cross_entropy(twin(x), y).backward()
    reported = []
    for name, k in counts.items():
        g, d = twin.get_submodule(name).weight.grad.flatten(), directions[name].flatten()
        inactive = (~masks[name]).flatten().nonzero().flatten().tolist()
        first = by_size([i for i in inactive if -g[i].sign() * d[i] > 0], g.abs(), int(grow_guided * k))
        grown = first + by_size([i for i in inactive if i not in first], g.abs(), k - len(first))
        masks[name].view(-1)[grown] = True
        left = sorted(by_size([i for i in inactive if i not in grown], g.abs(), k))
        reported += [(i + exchange.offsets(model)[name], float(g[i])) for i in left]
        assert 0 < len(first) <= int(grow_guided * k)
    for name, layer in sparse_layers(model).items():
        assert torch.equal(layer.topology.mask(), masks[name]), name
    pairs = method.report(client)["gradients"]
    assert pairs.indices.tolist() == [i for i, _ in reported]
    assert pairs.tensor().tolist() == pytest.approx([g for _, g in reported], rel=1e-4)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(("granularity", "initial"), [(1, "random"), (4, "random"), (1, "snip")])
def test_masks_change_at_adjustments_and_keep_their_counts(granularity: int, initial: str, epochs: int) -> None:
    """dT = 2, T_end = 6: rounds 2 and 4 adjust. The map has directions of active and of inactive weights by then."""
    method = FedSGC(
        density=0.4, distribution="uniform", interval=2, last=6, rate=0.5, granularity=granularity, initial=initial
    )
    loop = toy_loop(method, 9, epochs=epochs, lr=0.5)
    loop.open()
    first = {name: layer.topology.nnz for name, layer in loop.server.layers.items()}
    before = exchange.mask(loop.server.model)
    for t in range(6):
        record = loop.round(t)
        after = exchange.mask(loop.server.model)
        assert record["rejected"] == []
        assert torch.equal(after, before) == (t not in (2, 4))
        assert (record["mask_change"] > 0) == (t in (2, 4))
        assert {name: layer.topology.nnz for name, layer in loop.server.layers.items()} == first
        for layer in loop.server.layers.values():
            layer.topology.validate()
            assert layer.granularity == granularity
        before = after
        direction = loop.server.state["direction"]
        bits = coordinates.of_bits(loop.server.model, exchange.mask_bits(loop.server.model))
        active = torch.from_numpy(bits.mask())
        assert direction.dtype == torch.int8
        assert direction[active].any()
        assert bool(direction[~active].any()) == (t >= 2)


def test_bytes_are_those_of_the_table() -> None:
    """Up K values, when adjusting the mask and k pairs of at most three bytes; down at most two bits a weight besides."""
    method = FedSGC(density=0.4, distribution="uniform", interval=3, rate=0.3)
    loop = toy_loop(method, 12, epochs=2, lr=0.2, clients_per_round=3)
    loop.open()
    sent: dict[int, dict[str, int]] = {}
    down = []
    for t in range(5):
        weights = encode("weights", t, -1, dict(loop._weights(t)))
        down.append(3 * len(weights))
        sent[t] = sizes(weights)
        counts = method.counts(loop.server.model, t, 12)
        record = loop.round(t)
        up = 4 * loop.server.parameter_count + 4 * loop.server.buffer_count + 16
        extra = record["bytes_up"] / 3 - up
        most = (36 + 512 + 7) // 8 + 3 * sum(counts.values()) if t == 3 else 0
        assert (2 * sum(counts.values()) if t == 3 else 0) < extra < most + 200
        mask = len(encode("mask", t, -1, {"mask": Bitmap(exchange.mask(loop.server.model))}))
        if t == 4:
            assert down[t] < record["bytes_down"] <= down[t] + 3 * mask
        else:
            assert record["bytes_down"] == down[t] + (3 * mask if t == 0 else 0)
    assert set(sent[3]) - set(sent[2]) == {"direction"}
    assert sent[3]["direction"] <= 2 * ((36 + 512 + 7) // 8)
    assert sent[3]["parameters"] == sent[2]["parameters"] == 4 * loop.server.parameter_count
