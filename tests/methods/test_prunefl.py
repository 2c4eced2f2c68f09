import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, admission, exchange
from fedsparse.federated.client import train
from fedsparse.federated.errors import RunError
from fedsparse.federated.server import evaluate
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import PruneFL
from fedsparse.nn import sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.wire import Bitmap, Pairs, Section, Values, encode, sizes

HAND = PruneFL(interval=1, free=0.7, half_life=2)


def twelve_weights(active: list[int]) -> Server:
    """A server with one 3 x 4 linear layer, two clients of 1 and 3 samples, t = 1 and c = 2."""
    server = Server(nn.Sequential(nn.Linear(4, 3, bias=False)), 0, ["0"], 1, (4,), [1, 3])
    server.set_masks({"0": from_groups(torch.tensor(active), (3, 4)).mask()})
    server.state["seconds"] = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return server


def norms_of(entries: dict[int, float]) -> torch.Tensor:
    norms = torch.zeros(13)
    norms[list(entries)] = torch.tensor(list(entries.values()), dtype=torch.float32)
    return norms


def report(weights: list[float], norms: dict[int, float] | None = None, wire: str | None = None) -> dict[str, Section]:
    sections: dict[str, Section] = {
        "parameters": Values(torch.tensor(weights, dtype=torch.float32)),
        "buffers": Values(torch.zeros(0)),
    }
    return sections if norms is None else sections | {"gradients": Values(norms_of(norms), wire=wire)}


def play(method: PruneFL, server: Server, t: int, reports: list[dict[str, Section]]) -> None:
    """Send two reports through encode, judge, digest and sum, and update the server."""
    total = Total(declared=4)
    for id, sections in enumerate(reports):
        facts = Values(np.array([server.samples[id], 0.0]))
        data = encode("report", t, id, {"facts": facts, **sections})
        said, sent = judge(data, "report", t, id, server.samples[id], method.expect(server, t))
        total.add(id, said.samples, method.digest(server, sent, t))
    method.update(server, total, t)


FIRST = [
    report([4, -1, 2, 0.8, 1, -3], {0: 4, 1: 0, 2: 2, 3: 1, 4: 2, 5: 2, 6: 3, 10: 1, 12: 2}),
    report([4, 1, -2, 0, 1, -3], {1: 2, 2: 2, 3: 1, 7: 1, 9: 2, 10: 1}),
]


def test_two_adjustments_by_hand() -> None:
    """Clients with n = 1 (A) and 3 (B): mean = (A + 3 B) / 4. t = 1, c = 2, q = .7 * .5^(t / 2).

    Round 1: q = .495, floor(.495 * 6) = 2 active weights are free.
      active       0    1    4    5    8    9
      mean w       4   .5   -1   .2    1   -3      the two lowest are free: 5 and 1
      norms A      4    0    2    2    0    0      2: 2, 3: 1, 6: 3, 10: 1, never pruned: 2
      norms B      0    2    0    0    0    2      2: 2, 3: 1, 7: 1, 10: 1
      mean squares 4    3    1    1    0    3      2: 4, 3: 1, 6: 2.25, 7: .75, 10: 1, never pruned: 1
      Gamma of the protected 0 4 8 9: (1 + 4 + 1 + 0 + 3) / (2 + 4) = 1.5
      2: 4 >= 1.5, 13/7; 1: 3 >= 1.86, 16/8; 6: 2.25 >= 2, 18.25/9 = 2.03; the rest have 1 or less.
      (The squares of the mean norms would be .5625 for 6 and leave it out.)
      new mask 0 1 2 4 6 8 9, one more than before, with 4 .5 0 -1 0 1 -3
    Round 2: q = .35, floor(.35 * 7) = 2 are free: of 1 .1 .2 1 1 1 1 the weights 1 and 2.
      mean squares 0: 3, 1: 1/4, 2: 1/4, 5: 1, 11: 1/4
      Gamma of 0 4 6 8 9: 3/7; 5: 1 >= .43, 4/8; then 1/4 < .5, the end.
      new mask 0 4 5 6 8 9: smaller, with 1 1 0 1 1 1
    """
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    layer = server.layers["0"]
    play(HAND, server, 1, FIRST)
    assert layer.topology.flat().tolist() == [0, 1, 2, 4, 6, 8, 9]
    assert layer.values.tolist() == [4.0, 0.5, 0.0, -1.0, 0.0, 1.0, -3.0]
    assert server.changed == pytest.approx(2 / 7)
    same = [1, 0.1, 0.2, 1, 1, 1, 1]
    play(HAND, server, 2, [report(same, {1: 1, 2: 1, 5: 1, 11: 1}), report(same, {0: 2, 5: 1})])
    assert layer.topology.flat().tolist() == [0, 4, 5, 6, 8, 9]
    assert layer.values.tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert server.mask_version == 3
    assert "squares" not in server.state


@pytest.mark.parametrize(
    ("change", "mask"),
    [
        ({"max_density": 0.5}, [0, 1, 2, 4, 8, 9]),
        ({"free": 0.0}, [0, 1, 2, 4, 5, 6, 8, 9]),
    ],
    ids=["room for two", "nothing is pruned"],
)
def test_settings_of_the_first_adjustment(change: dict[str, object], mask: list[int]) -> None:
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    play(replace(HAND, **change), server, 1, FIRST)
    assert server.layers["0"].topology.flat().tolist() == mask


def test_a_window_sums_squares_over_its_rounds() -> None:
    """dT = 4, window 2: rounds 3 and 4 ask. Mean squares: 2 in round 3, for weight 1; 1.5 in round 4, for weight 2.

    Weight 0 is protected: Gamma (0 + 0) / 3; 1: 2/4 = .5; 2: 1.5 >= .5. Without the sum weight 1 would stay out.
    """
    method = replace(HAND, interval=4, window=2)
    assert [t for t in range(13) if method.asks(t)] == [3, 4, 7, 8, 11, 12]
    server = twelve_weights([0])
    play(method, server, 3, [report([1], {1: 8**0.5}), report([1], {})])
    assert server.layers["0"].topology.flat().tolist() == [0]
    assert server.state["squares"].tolist() == pytest.approx([0, 2, *[0] * 11])
    play(method, server, 4, [report([1], {2: 6**0.5}), report([1], {})])
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2]
    assert "squares" not in server.state


def test_after_the_last_adjustment_round_no_norm_is_asked_for() -> None:
    """dT = 4. With last = 8, or 11, the adjustments are 4 and 8; 11 has no adjustment round after it, so it sums none."""
    for last, rounds in ((0, [3, 4, 7, 8, 11, 12]), (8, [3, 4, 7, 8]), (11, [3, 4, 7, 8]), (3, [])):
        method = replace(HAND, interval=4, window=2, last=last)
        assert [t for t in range(14) if method.asks(t)] == rounds
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    play(replace(HAND, last=1), server, 1, FIRST)
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2, 4, 6, 8, 9]
    play(replace(HAND, last=1), server, 2, [report([1] * 7)] * 2)
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2, 4, 6, 8, 9]


def test_norms_of_one_byte_are_right_to_a_step_of_their_layer() -> None:
    """A layer's step is its largest norm / 127; the square of a norm, on average, is at most (step / 2)^2 too much.

    That all twelve norms are sent is known by the number that is never pruned: it is a segment of its own, so exact.
    """
    method = replace(HAND, gradient_wire="int8", prune_last=True)
    server = twelve_weights(list(range(12)))
    gradient = torch.arange(12.0).view(3, 4)
    sums = []
    for id in range(200):
        client = Client(id, 1, 0, server.model, toy_data(), np.arange(2), Training())
        client.memory["0"] = gradient.clone()
        client.memory["other"] = torch.tensor([300.0])
        sent = method.report(client)
        data = encode("report", 1, 0, {"facts": Values(np.array([1, 0.0])), **sent})
        _, got = judge(data, "report", 1, 0, 1, method.expect(server, 1))
        norms = got["gradients"].tensor()
        assert (norms[:12] - gradient.flatten()).abs().max() < 11 / 127
        assert norms[12] == pytest.approx(300.0, rel=1e-6)
        assert sizes(data)["gradients"] == 13 + 2 * 8, "a byte a norm, a length and a scale a segment"
        sums.append(method.digest(server, got, 1)["gradients"].tensor())
    bias = torch.stack(sums).mean(0)[:12] - gradient.flatten().square()
    assert bias.abs().max() < (11 / 254) ** 2 + 4 * 11 * 11 / 127 / 200**0.5
    with pytest.raises(ValueError, match="gradient_share is 0.5"):
        replace(method, gradient_share=0.5)


def test_between_adjustments_the_mask_stays_and_no_gradient_travels() -> None:
    method = replace(HAND, interval=2)
    server = twelve_weights([0, 1, 4])
    play(method, server, 1, [report([1, 1, 1]), report([1, 1, 1])])
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 4]
    assert server.mask_version == 1
    assert not method.asks(0), "round 0 is no adjustment round"


def test_a_share_sends_the_largest_norms_and_what_is_missing_is_0() -> None:
    """Of 12 groups a quarter, 3, and the last number: mean squares 2: 3, 1: 9/4 + 3/4, 12: 1; Gamma of 0 is 1/3."""
    method = replace(HAND, gradient_share=0.25)
    server = twelve_weights([0])
    sections = []
    for entries in ({1: 3.0, 5: 0.1, 7: 0.2, 12: 2.0}, {1: 1.0, 2: 2.0, 3: 0.1, 12: 0.0}):
        index = torch.tensor(list(entries))
        sections.append(report([1]) | {"gradients": Pairs(index, norms_of(entries)[index], 13, wire="fp16")})
    play(method, server, 1, sections)
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2]
    with pytest.raises(UpdateError, match="count"):
        play(method, server, 2, [report([1, 0, 0]) | {"gradients": Pairs(torch.tensor([1]), torch.ones(1), 13)}])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (report([1] * 6), "missing"),
        (report([1] * 6) | {"gradients": Values(torch.ones(12))}, "size"),
        (report([1] * 6, {3: float("nan")}), "not finite"),
        (report([1] * 6, {3: 2048.0}), "norm of 2048"),
        (report([1] * 7, {3: 1.0}), "size"),
    ],
)
def test_bad_reports_are_refused(sections: dict[str, Section], words: str) -> None:
    server = twelve_weights([0, 1, 4, 5, 8, 9])
    with pytest.raises(UpdateError, match=words):
        play(HAND, server, 1, [sections])


def toy_data(samples: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 2
    images = torch.randn(samples, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
    return Dataset("toy", images, labels, 2, (0.0,), (1.0,))


def toy_model(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    head = [nn.Conv2d(1, 4, 3, padding=1, bias=False), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*head, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))


TOY = PruneFL(interval=2, weight_seconds=1e-3, constant_seconds=0.05, initial_limit=40, initial_interval=4)


def toy_loop(method: PruneFL, rounds: int = 6, norm: bool = True, **training: object) -> Loop:
    data = toy_data()
    settings = Training(rounds, **{"clients_per_round": 2, "epochs": 2, "batch_size": 8, "lr": 0.02, **training})  # type: ignore[arg-type]
    return Loop(Experiment(toy_model(norm), method, data, data, [np.arange(0, 8), np.arange(8, 24)], settings))


@pytest.mark.parametrize("granularity", [1, 4])
@pytest.mark.parametrize("norm", [True, False])
def test_the_size_is_an_output_and_costs_what_it_says(granularity: int, norm: bool) -> None:
    """Prunable: 36 + 512 weights. The norms of all groups and one number travel up in rounds 2 and 4."""
    loop = toy_loop(replace(TOY, granularity=granularity), norm=norm)
    loop.open()
    assert 0 < loop.server.density() < 1, "initial pruning"
    groups = 548 // granularity
    overheads, sizes = [], [loop.server.layers[name].topology.nnz for name in loop.server.names]
    for t in range(6):
        before = exchange.mask(loop.server.model)
        count = loop.server.parameter_count + loop.server.buffer_count
        record = loop.round(t)
        assert record["rejected"] == []
        assert torch.equal(exchange.mask(loop.server.model), before) == (t not in (2, 4))
        up, down = record["bytes_up"], record["bytes_down"]
        if t == 0:
            up, down = up - loop.opening["bytes_up"], down - loop.opening["bytes_down"]
        mask = len(encode("mask", t, -1, {"mask": Bitmap(before)})) if t in (0, 3, 5) else 0
        overheads.append(up - 2 * 4 * count - (2 * 4 * (groups + 1) if t in (2, 4) else 0))
        overheads.append(down - 2 * 4 * count - 2 * mask)
        for layer in loop.server.layers.values():
            layer.topology.validate()
            assert layer.granularity == granularity
            assert layer.topology.nnz > 0
    assert all(0 < overhead < 2 * 200 for overhead in overheads), "headers"
    assert [loop.server.layers[name].topology.nnz for name in loop.server.names] != sizes


@pytest.mark.parametrize(
    ("change", "bytes_a_group"),
    [({"gradient_wire": "fp16"}, 2.0), ({"gradient_wire": "int8"}, 1.0), ({"gradient_share": 0.1}, 0.1 * 4 + 1 / 8)],
)
def test_options_make_the_gradients_cheaper(change: dict[str, object], bytes_a_group: float) -> None:
    records = []
    for method in (replace(TOY, initial_limit=0), replace(TOY, initial_limit=0, **change)):
        loop = toy_loop(method)
        loop.open()
        records.append([loop.round(t) for t in range(4)])
    full, less = ([r["bytes_up"] for r in rounds] for rounds in records)
    assert full[:2] == less[:2]
    assert full[2] - less[2] == pytest.approx(2 * 549 * (4 - bytes_a_group), abs=120)
    assert records[1][2]["mask_change"] > 0 or records[1][2]["density"] < 1


@pytest.mark.parametrize("granularity", [1, 2])
def test_a_client_sends_the_norm_of_the_sum_of_its_gradients(granularity: int) -> None:
    """Learning rate almost 0: the minibatch gradients are those of the same weights, which a dense twin computes."""
    method = replace(TOY, interval=1, granularity=granularity)
    loop = toy_loop(method)
    loop.open()
    model = copy.deepcopy(loop.server.model)
    client = Client(1, 1, 0, model, loop.experiment.train, np.arange(8, 24), Training(batch_size=8, lr=1e-12))
    train(client, method)
    assert not model[0]._forward_hooks
    norms = torch.as_tensor(method.report(client)["gradients"].array)
    twin = copy.deepcopy(loop.experiment.model).train()
    for name, layer in sparse_layers(model).items():
        twin.get_submodule(name).weight.data = layer.dense_weight()
    for name, parameter in twin.named_parameters():
        if name not in ("0.weight", "4.weight"):
            parameter.data = model.get_parameter(name).detach().clone()
    for x, y in client.batches("epoch 0"):
        functional.cross_entropy(twin(x), y).backward()
    V = granularity
    expected = [
        twin.get_submodule(name).weight.grad.square().reshape(-1, V, n).sum(1).flatten().sqrt()
        for name, n in (("0", 9), ("4", 64))
    ]
    never = sum(p.grad.square().sum() for name, p in twin.named_parameters() if name not in ("0.weight", "4.weight"))
    assert torch.allclose(norms, torch.cat([*expected, never.sqrt()[None]]), atol=1e-5)
    without = replace(method, dense_gain=False).report(client)
    assert without["gradients"].array[-1] == 0.0
    ordinary = replace(client)
    train(ordinary, replace(method, interval=5))
    assert ordinary.memory == {}, "no gradient is summed where none is asked"


def test_initial_pruning_trains_at_the_largest_client_until_the_size_is_stable() -> None:
    asked: list[int] = []
    sizes: list[int] = []

    class Watched(PruneFL):
        def prune_alone(self, client, sections):
            asked.append(client.id)
            return super().prune_alone(client, sections)

        def _reconfigure(self, client, seconds):
            super()._reconfigure(client, seconds)
            sizes.append(int(exchange.mask(client.model).sum()))

    loop = toy_loop(Watched(**{**TOY.__dict__, "free": 0.08, "initial_limit": 400}))
    loop.open()
    assert asked == [1]
    accuracy, _ = evaluate(loop.server.model, loop.experiment.test)
    assert loop.opening["accuracy"] == accuracy > 0.5
    assert len(sizes) == 5, "a layer loses at most 8 % of its weights at a time, which is stable"
    assert sizes[-1] == sum(layer.topology.nnz for layer in loop.server.layers.values()) < 548
    assert not torch.equal(exchange.buffers(loop.server.model), exchange.buffers(loop.experiment.model))
    kept = sparse_layers(loop.server.model)["4"].dense_weight() != loop.experiment.model[4].weight
    assert bool(kept[sparse_layers(loop.server.model)["4"].topology.mask()].any()), "the trained weights are kept"

    sizes.clear()
    never = toy_loop(Watched(**{**TOY.__dict__, "start_accuracy": 2.1}))
    never.open()
    assert sizes == []
    assert never.server.density() == 1.0, "accuracy never reaches 2.1 / 2, so that nothing is pruned"

    hasty = toy_loop(Watched(**{**TOY.__dict__, "free": 0.3, "start_accuracy": 0.0, "tolerance": 0.0}))
    hasty.open()
    assert len(sizes) == 10, "40 minibatches are the limit"


@pytest.mark.parametrize(("limit", "steps"), [(3, [3]), (8, [4, 4]), (10, [4, 4, 2])])
def test_initial_pruning_trains_on_as_many_minibatches_as_it_may(limit: int, steps: list[int]) -> None:
    """Every fourth reconfigures, and the last."""
    trained: list[int] = []

    class Watched(PruneFL):
        def _train(self, client, batches):
            before = client.iteration
            accuracy = super()._train(client, batches)
            trained.append(client.iteration - before)
            return accuracy

    toy_loop(Watched(**{**TOY.__dict__, "initial_limit": limit, "start_accuracy": 2.1})).open()
    assert trained == steps


@pytest.mark.parametrize("wrong", ["mask", "parameters", "layer"])
def test_a_bad_answer_of_initial_pruning_goes_to_the_next_client(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    class Sabotaged(PruneFL):
        def prune_alone(self, client, sections):
            answer = super().prune_alone(client, sections)
            if client.id == 1:
                mask = torch.as_tensor(answer["mask"].mask).clone()
                if wrong == "mask":
                    mask[int(mask.nonzero()[0])] = False
                if wrong == "layer":
                    parameters = torch.as_tensor(answer["parameters"].array)
                    answer["parameters"] = Values(parameters[int(mask[:36].sum()) :].clone())
                    mask[:36] = False
                if wrong == "parameters":
                    answer["parameters"] = Values(torch.ones(3))
                answer["mask"] = Bitmap(mask)
            return answer

        def digest(self, server, sections, t):
            try:
                return super().digest(server, sections, t)
            except UpdateError as reason:
                refused.append(str(reason))
                raise

    loop = toy_loop(Sabotaged(**TOY.__dict__))
    loop.open()
    assert len(refused) == 1
    assert ("without weights" in refused[0]) == (wrong == "layer")
    assert 0 < loop.server.density() < 1, "client 0's mask"
    assert loop.round(0)["rejected"] == []


def test_no_accepted_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise UpdateError("no")

    monkeypatch.setattr(admission, "judge", nothing)
    with pytest.raises(RunError, match="no client performed prune_alone"):
        toy_loop(TOY).open()


def test_times_are_given_by_layer_or_measured() -> None:
    loop = toy_loop(replace(TOY, weight_seconds={"4": 2.0, "0": 1.0}, initial_limit=0))
    loop.open()
    assert loop.server.state["seconds"].tolist() == [1.0, 2.0, 0.05]
    assert loop.server.density() == 1.0
    with pytest.raises(ValueError, match=r"names 0, but the pruned layers are 0, 4"):
        toy_loop(replace(TOY, weight_seconds={"0": 1.0})).open()
    measured = toy_loop(replace(TOY, weight_seconds=None, link_rate=1e6, initial_limit=0))
    measured.open()
    seconds = measured.server.state["seconds"]
    assert seconds.shape == (3,)
    assert bool((seconds[:2] >= 8e-6).all()), "no less than the bytes take"
    assert float(seconds[2]) >= 26 * 8e-6, "26 numbers are never pruned"


def test_without_initial_pruning_the_full_model_is_pruned_in_rounds_and_learns() -> None:
    loop = toy_loop(replace(TOY, initial_limit=0, interval=1), rounds=6, lr=0.05)
    loop.open()
    assert loop.opening["accuracy"] is None, "no weight was trained"
    records = [loop.round(t) for t in range(6)]
    densities = [r["density"] for r in records]
    assert densities[0] == 1.0
    assert len(set(densities)) >= 3
    assert densities[-1] < 0.8
    assert records[-1]["accuracy"] > 0.85
    assert records[-1]["macs"] < records[0]["macs"]
