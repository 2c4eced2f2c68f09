import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, exchange, run
from fedsparse.federated.client import train
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import FedMef
from fedsparse.nn import SparseConv2d, SparseLinear, sparse_layers, sparsify
from fedsparse.nn.nsconv import NSConv2d, NSSparseConv2d, PrunedConv2d
from fedsparse.pruning import from_groups
from fedsparse.wire import Pairs, Section, Values, decode, encode, sizes


def server_of(active: list[int], values: list[float], shape: tuple[int, int] = (3, 4), granularity: int = 1) -> Server:
    """A server with one linear layer of these active groups and values, and two clients of 1 and 3 samples."""
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    server = Server(model, 0, ["0"], granularity, (shape[1],), [1, 3])
    server.set_masks({"0": from_groups(torch.tensor(active), shape, granularity).mask()})
    server.layers["0"].values.data = torch.tensor(values)
    return server


def report(weights: list[float], grown: dict[int, object], size: int = 12) -> dict[str, Section]:
    gradients = torch.tensor(list(grown.values()), dtype=torch.float32)
    return {
        "parameters": Values(torch.tensor(weights, dtype=torch.float32)),
        "buffers": Values(torch.zeros(0)),
        "growth": Pairs(torch.tensor(list(grown)), gradients, size),
    }


def play(method: FedMef, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
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
      sent         3  -.5    2   .4    1   -3      low: 5 (.4) and 1 (.5)
      A            3   -1    2   .8   .1   -3
      B            3    3    2    0   .1   -3
      mean         3    2    2   .2   .1   -3      8 is the lowest now, but low was fixed at the start
      g~: 2: 4/4 = 1; 3: (-1 + 3 * 2)/4 = 1.25; 6: 3 * 1.2/4 = .9      grown: 3 and 2
      new mask 0 2 3 4 8 9 with 3 0 0 2 .1 -3
    Round 2: c = 1/2, a = floor(.2 * 6) = 1. Low of what was sent: of the two zeros the lower, 2, whatever its mean.
      g~: 1: 1/4 = .25; 5: -3 * .5/4 = -.375: 5 is grown
      new mask 0 3 4 5 8 9 with 1 -1 1 0 1 1
    """
    method = FedMef(density=0.5, interval=1, last=4, rate=0.2)
    server = server_of([0, 1, 4, 5, 8, 9], [3.0, -0.5, 2.0, 0.4, 1.0, -3.0])
    layer = server.layers["0"]
    a, b = [3, -1, 2, 0.8, 0.1, -3], [3, 3, 2, 0, 0.1, -3]
    play(method, server, 1, [report(a, {2: 4.0, 3: -1.0}), report(b, {3: 2.0, 6: 1.2})])
    assert layer.topology.flat().tolist() == [0, 2, 3, 4, 8, 9]
    assert torch.allclose(layer.values, torch.tensor([3.0, 0.0, 0.0, 2.0, 0.1, -3.0]))
    assert server.changed == pytest.approx(2 / 6)
    weights = [1, 5, -1, 1, 1, 1]
    play(method, server, 2, [report(weights, {1: 1.0}), report(weights, {5: -0.5})])
    assert layer.topology.flat().tolist() == [0, 3, 4, 5, 8, 9]
    assert layer.values.tolist() == [1, -1, 1, 0, 1, 1]
    assert server.mask_version == 3


def test_groups_by_hand() -> None:
    """V = 2, 4 x 4: groups 0 1 (rows 0 1, columns 0 1), 4 6 (rows 2 3, columns 0 2); values row by row.

    a = floor(.3 * 1.707 * 8) = 4 weights, 2 groups. Sums of |w| as sent: 2, .3, 4, 1.1: low is 1 and 6.
    g~ of 2: (1/4, (-1 + 3 * .4)/4), |.25| + |.05| = .3; of 3: .05; of 5: 3/4 + 3/4 = 1.5. Grown: 5 and 2.
    """
    method = FedMef(density=0.5, interval=1, last=4, rate=0.3, granularity=2)
    server = server_of([0, 1, 4, 6], [1, 0.1, -1, 0.2, 2, 0.5, 2, -0.6], (4, 4), granularity=2)
    weights = [1, 9, 1, 9, 1, 9, 1, 9]
    a = report(weights, {2: (1.0, -1.0), 3: (0.2, 0.0)}, size=8)
    b = report(weights, {2: (0.0, 0.4), 5: (-1.0, -1.0)}, size=8)
    play(method, server, 1, [a, b])
    topology = server.layers["0"].topology
    assert topology.flat().tolist() == [0, 2, 4, 6, 8, 9, 12, 13]
    assert server.layers["0"].values.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


def test_decay_over_the_budget() -> None:
    """(8 - 2b) / (8 - b): 8/8, 6/7, 4/6, 2/5, 0."""
    assert [FedMef.budget_decay(b, 4) for b in range(5)] == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0])


def toy_data(samples: int = 24, size: int = 4) -> Dataset:
    images = torch.randn(samples, 1, size, size, generator=torch.Generator().manual_seed(0))
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def extruding_client(round: int, training: Training) -> Client:
    """10 samples of 4 pixels; a linear layer of 12 active weights, .3 and -.4 the lowest, and the classifier."""
    torch.manual_seed(0)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask.view(-1)[::2] = True
    model = sparsify(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), masks={"1": mask})
    values = torch.tensor([1, -0.9, 0.3, 0.8, -1.1, 0.7, -0.4, 0.6, -0.5, 1.2, 0.9, -1.3])
    sparse_layers(model)["1"].values.data = values
    return Client(0, round, 5, model, toy_data(10, 2), np.arange(10), training)


def test_extrusion_is_its_formula_iteration_by_iteration() -> None:
    """Against dense SGD written out here: E = 2, 2 batches of 5, so B = 4; t = 2, so lr_b = .1 / 4; lr_0 = 8 * .1.

    c(2) = 1/2 and a = floor(.2 * 12) = 2: low is .3 and -.4, ||w_low|| = .5, and the first learning rate is
    .8 (2 sigmoid(.5) - 1) = .8 * .2449 = .1959.
    """
    training = Training(rounds=9, epochs=2, batch_size=5, lr=0.1, lr_decay=0.5, momentum=0.9)
    method = FedMef(interval=1, last=4, rate=0.2, penalty=0.3, extrusion_lr=8)
    client = extruding_client(2, training)
    sparse = sparse_layers(client.model)["1"]
    mask, first = sparse.topology.mask(), copy.deepcopy(client.model)

    weights = [sparse.dense_weight(), *(p.detach().clone() for p in list(first.parameters())[1:])]
    velocity = [torch.zeros_like(w) for w in weights]
    low, rates = torch.tensor([4, 12]), []
    for b, (x, y) in enumerate([batch for e in (0, 1) for batch in client.batches(f"epoch {e}")]):
        w, bias, v, shift = leaves = [p.clone().requires_grad_() for p in weights]
        hidden = functional.linear(x.flatten(1), w, bias).relu()
        loss = functional.cross_entropy(functional.linear(hidden, v, shift), y) + 0.3 * w.flatten()[low].square().sum()
        gradients = torch.autograd.grad(loss, leaves)
        norm = float(weights[0].flatten()[low].norm())
        rates.append(max(0.025, (8 - 2 * b) / (8 - b) * (2 / (1 + math.exp(-norm)) - 1) * 0.8))
        for i, g in enumerate(gradients):
            velocity[i] = 0.9 * velocity[i] + (g * mask if i == 0 else g)
            weights[i] = weights[i] - rates[-1] * velocity[i]
    assert rates[0] == pytest.approx(0.19593, abs=1e-5)

    taken: list[float] = []
    step = client.optimizer.descend
    client.optimizer.descend = lambda: (taken.append(client.optimizer.param_groups[0]["lr"]), step())[1]
    train(client, method)
    assert taken == pytest.approx(rates, rel=1e-5)
    assert client.memory["1"].tolist() == [2, 6]
    torch.testing.assert_close(sparse.dense_weight(), weights[0])
    for found, expected in zip(list(client.model.parameters())[1:], weights[1:]):
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize(("schedule", "first"), [("constant", 0.1), ("cosine", 0.024492)])
def test_by_default_extrusion_raises_the_rate_where_the_schedule_has_fallen(schedule: str, first: float) -> None:
    """lr_0 = .1, ||w_low|| = .5: .1 * .24492 at b = 0. Round 8 of 9 has .1 (1 + cos(8 pi / 9)) / 2 = .00302, or .1."""
    training = Training(rounds=9, batch_size=5, lr=0.1, lr_schedule=schedule)  # type: ignore[arg-type]
    client, taken = extruding_client(8, training), []
    client.optimizer.descend = lambda: taken.append(client.optimizer.param_groups[0]["lr"])
    train(client, FedMef(interval=1, last=16, rate=0.2))
    assert client.memory["1"].tolist() == [2, 6]
    assert taken[0] == pytest.approx(first, rel=1e-4)
    if schedule == "cosine":
        assert taken[1] == pytest.approx(first * 2 / 3, rel=1e-4), (
            "no step was taken: p(1) of B = 2 is (4 - 2) / (4 - 1)"
        )


def test_extrusion_drives_low_weights_towards_zero() -> None:
    training = Training(rounds=9, epochs=10, batch_size=5, lr=0.1, momentum=0.0)
    ends = []
    for penalty in (0.0, 1.0):
        client = extruding_client(2, training)
        train(client, FedMef(interval=1, last=4, rate=0.2, penalty=penalty))
        ends.append(float(sparse_layers(client.model)["1"].values.detach()[[2, 6]].norm()))
    assert ends[1] < 0.1
    assert ends[0] > 0.4


def test_an_ordinary_round_is_plain_training() -> None:
    ends = []
    for method in (FedMef(interval=2, last=4, penalty=5.0, extrusion_lr=100), FedMef(interval=2, last=1)):
        client = extruding_client(3, Training(batch_size=5))
        train(client, method)
        assert client.memory == {}
        assert set(method.report(client)) == {"parameters", "buffers"}
        ends.append(exchange.parameters(client.model))
    assert torch.equal(*ends)


def test_both_sides_know_the_low_weights_alike_on_a_coarse_wire() -> None:
    """1 + 2^-12 and 1 are both 1 as float16: then the lower index is the lower weight, for the server too."""
    method = FedMef(density=0.5, interval=1, last=4, rate=0.1)
    for wire, lowest_index in (("fp32", 3), ("fp16", 1)):
        server = server_of([0, 1, 4, 5, 8, 9], [3.0, 1 + 2.0**-12, 2.0, 1.0, 4.0, -3.0])
        server.wire = wire
        sent = Values(exchange.parameters(server.model), wire=wire)
        client_model = copy.deepcopy(server.model)
        exchange.load_vectors(
            client_model, exchange.vectors(decode(encode("weights", 1, -1, {"parameters": sent})).sections)
        )
        client = Client(0, 1, 0, client_model, toy_data(), np.arange(4), Training())
        method.begin(client)
        assert client.memory["0"].tolist() == [lowest_index]
        before = set(server.layers["0"].topology.flat().tolist())
        play(method, server, 1, [report([9] * 6, {2: 1.0}), report([9] * 6, {2: 1.0})])
        pruned = before - set(server.layers["0"].topology.flat().tolist())
        assert pruned == {[0, 1, 4, 5, 8, 9][lowest_index]}


@pytest.mark.parametrize(
    ("grown", "words"),
    [
        ({0: 1.0, 2: 1.0}, "active already"),
        ({2: 1.0}, "count"),
        ({2: 1.0, 3: 1.0, 6: 1.0}, "count"),
        ({2: 1.0, 3: float("nan")}, "not finite"),
    ],
)
def test_pairs_that_are_not_candidates_are_refused(grown: dict[int, object], words: str) -> None:
    method = FedMef(density=0.5, interval=1, last=4, rate=0.2)
    server = server_of([0, 1, 4, 5, 8, 9], [1.0] * 6)
    with pytest.raises(UpdateError, match=words):
        play(method, server, 1, [report([1] * 6, grown)])


def test_every_layer_has_its_own_count() -> None:
    method = FedMef(density=0.4, distribution="uniform", interval=1, last=4, rate=0.4)
    loop = toy_loop(method)
    loop.open()
    sections = method.report(copy_of_client(loop, 1))
    pairs = sections["growth"]
    assert isinstance(pairs, Pairs)
    indices = pairs.indices.copy()
    indices[np.isin(indices, np.arange(36))] += 36
    moved = sections | {"growth": Pairs(np.unique(indices), pairs.values[: len(np.unique(indices))], pairs.size)}
    with pytest.raises(UpdateError, match="growth has 0 weights in 0, not"):
        method.digest(loop.server, moved, 1)


def copy_of_client(loop: Loop, t: int) -> Client:
    model = copy.deepcopy(loop.server.model).train()
    return Client(1, t, 0, model, loop.experiment.train, np.arange(8, 24), Training(batch_size=8))


def toy_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def toy_loop(method: FedMef, rounds: int = 6, **settings: object) -> Loop:
    data = toy_data()
    parts = [np.arange(0, 8), np.arange(8, 24)]
    training = Training(rounds, 2, 1, **{"batch_size": 8, **settings})
    return Loop(Experiment(toy_model(), method, data, data, parts, training))


def test_which_layers_are_made() -> None:
    method = FedMef(store="bf16", gamma=0.75, gain=1.5)
    assert method.activations == "pruned(0.25, bf16)"
    model = method.prepare(toy_model())
    assert isinstance(model[0], NSConv2d)
    assert model[0].gain.tolist() == [1.5] * 4
    assert type(model[3]) is PrunedConv2d
    loop = toy_loop(FedMef(density=0.4))
    loop.open()
    kinds = [type(layer) for layer in loop.server.layers.values()]
    assert kinds[0] is NSSparseConv2d
    assert issubclass(kinds[1], SparseConv2d)
    assert kinds[2] is SparseLinear
    assert loop.server.buffer_count == 0


def test_a_client_sends_the_largest_inactive_gradients_of_its_batch() -> None:
    """The gradient of the weights that a plain convolution would have, from the input as NSConv keeps it: all of it."""
    method = FedMef(density=0.3, distribution="uniform", interval=1, last=4, rate=0.4, gamma=0.0)
    loop = toy_loop(method)
    loop.open()
    client = copy_of_client(loop, 1)
    growth = method.report(client)["growth"]
    assert isinstance(growth, Pairs)
    counts, starts = method.counts(client.model, 1), exchange.offsets(client.model)
    plain = toy_model()
    plain[1] = nn.Identity()
    for name, layer in sparse_layers(client.model).items():
        dense = plain.get_submodule(name)
        dense.weight.data, dense.bias = layer.dense_weight(), None if layer.bias is None else layer.bias
    plain[8].load_state_dict(client.model[8].state_dict())
    x, y = next(client.batches("growth"))
    functional.cross_entropy(plain(x), y).backward()
    for name, layer in sparse_layers(client.model).items():
        g = plain.get_submodule(name).weight.grad.flatten()
        inactive = g.abs().masked_fill(layer.topology.mask().flatten(), -1.0)
        expected = set((inactive.topk(counts[name]).indices + starts[name]).tolist())
        inside = {i for i in growth.indices.tolist() if starts[name] <= i < starts[name] + layer.topology.numel}
        assert inside == expected


@pytest.mark.parametrize(("granularity", "last"), [(1, False), (4, False), (1, True)])
def test_masks_change_at_every_adjustment_and_keep_their_counts(granularity: int, last: bool) -> None:
    method = FedMef(
        density=0.4, distribution="uniform", interval=1, last=5, rate=0.5, granularity=granularity, prune_last=last
    )
    loop = toy_loop(method)
    loop.open()
    first = {name: layer.topology.nnz for name, layer in loop.server.layers.items()}
    assert len(first) == 3 + last
    before = exchange.mask(loop.server.model)
    for t in range(6):
        record = loop.round(t)
        after = exchange.mask(loop.server.model)
        assert record["rejected"] == []
        assert torch.equal(after, before) == (t == 0 or t == 5), "c(5) = 0"
        assert (record["mask_change"] > 0) == (0 < t < 5)
        assert {name: layer.topology.nnz for name, layer in loop.server.layers.items()} == first
        for layer in loop.server.layers.values():
            layer.topology.validate()
            assert layer.granularity == granularity
        before = after


def test_what_is_pruned_is_what_was_low_at_the_start_of_the_round() -> None:
    method = FedMef(density=0.4, distribution="uniform", interval=1, last=5, rate=0.5)
    loop = toy_loop(method, lr=0.3)
    loop.open()
    for t in range(4):
        counts = method.counts(loop.server.model, t)
        kept = {}
        for name, layer in loop.server.layers.items():
            order = sorted(range(layer.topology.nnz), key=lambda i: (abs(float(layer.values.detach()[i])), i))
            flat = layer.topology.flat()
            kept[name] = {int(flat[i]) for i in order[counts.get(name, 0) :]}
        loop.round(t)
        for name, layer in loop.server.layers.items():
            now = set(layer.topology.flat().tolist())
            assert kept[name] <= now
            assert len(now) == len(kept[name]) + counts.get(name, 0)


@pytest.mark.parametrize("granularity", [1, 4])
def test_bytes_are_those_of_the_table(granularity: int) -> None:
    """K values a round in both directions; a_l pairs up when adjusting; the mask down to both clients the round after.

    Every second of 6 rounds adjusts. The mask is of 36 + 288 + 256 weights, a bit a group; a pair is V float32 and an
    index. The report also holds its facts; there are no norm statistics.
    """
    method = FedMef(density=0.4, distribution="uniform", interval=2, last=8, rate=0.5, granularity=granularity)
    loop = toy_loop(method)
    loop.open()
    records = [loop.round(t) for t in range(6)]
    up = [record["bytes_up"] for record in records]
    down = [record["bytes_down"] for record in records]
    model = loop.server.model
    weights = {"parameters": Values(exchange.parameters(model)), "buffers": Values(exchange.buffers(model))}
    plain = encode("report", 1, 0, {"facts": Values(np.zeros(2)), **weights})
    assert sizes(plain)["parameters"] == 4 * loop.server.parameter_count
    assert sizes(plain)["buffers"] == 0
    assert up[0] == up[1] == up[3] == up[5] == 2 * len(plain)
    for t in (2, 4):
        pairs = sum(method.counts(model, t).values())
        added = up[t] - up[0]
        assert 2 * pairs * 4 * granularity < added < 2 * (pairs * (4 * granularity + 2) + 40)
    bits = sum(layer.topology.numel for layer in loop.server.layers.values()) // granularity
    message = len(encode("weights", 1, -1, weights))
    for t, record in enumerate(down):
        if t in (0, 3, 5):
            assert 2 * message < record <= 2 * (message + (bits + 7) // 8 + 60)
        else:
            assert record == 2 * message


@pytest.mark.parametrize("initial", ["magnitude", "snip", "grasp", "synflow"])
def test_other_initial_masks(initial: str) -> None:
    loop = toy_loop(FedMef(density=0.3, initial=initial, interval=1), rounds=2)
    loop.open()
    records = [loop.round(t) for t in range(2)]
    assert records[1]["mask_change"] > 0
    assert records[1]["density"] == pytest.approx(0.3, abs=0.01)


def test_batches_of_one_sample() -> None:
    loop = toy_loop(FedMef(density=0.3, interval=1), rounds=2, batch_size=1)
    loop.open()
    losses = [loop.round(t)["train_loss"] for t in range(2)]
    assert all(math.isfinite(loss) for loss in losses)


def test_activation_pruning_lowers_the_measured_peak() -> None:
    peaks = []
    for gamma in (0.0, 0.9):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
        for _ in range(6):
            layers += [nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, padding=1, bias=False)]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        data = toy_data(16, 24)
        method = FedMef(density=0.2, interval=1, gamma=gamma, store="bf16" if gamma else "fp32")
        result = run(Experiment(model, method, data, data, [np.arange(16)], Training(2, 1, 1, 16)))
        peaks.append(result["peak_bytes"])
    assert peaks[1] < 0.8 * peaks[0], peaks
