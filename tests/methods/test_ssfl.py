import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Server, Total, Training, exchange
from fedsparse.federated.validate import UpdateError, judge
from fedsparse.methods import SSFL
from fedsparse.nn import sparse_layers
from fedsparse.pruning import score
from fedsparse.wire import Values, encode


def two_layers() -> Server:
    """A dense server with a 2 x 3 and a 2 x 2 prunable layer, a last one, and clients of 1 and 3 samples."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    return Server(model, 0, ["0", "1"], 1, (3,), [1, 3])


def probe(method: SSFL, server: Server, scores: list[list[float]]) -> None:
    """Answer the server's question with these scores, through encode, judge, digest and sum."""

    def ask(task, sections, expect, clients):
        assert (task, clients) == ("score_weights", None)
        total = Total(declared=4)
        for id, numbers in enumerate(scores):
            answer = {"scores": Values(torch.tensor(numbers), wire=method.score_wire)}
            facts = Values(np.array([server.samples[id], float("nan")]))
            said, sent = judge(encode(task, 0, id, {"facts": facts, **answer}), task, 0, id, server.samples[id], expect)
            total.add(id, said.samples, method.digest(server, sent, 0))
        return total

    method.probe(server, ask)


SCORES = [[8.0, 0, 0, 1, 0, 4.4, 0, 2, 0, 0], [0.0, 2, 0, 1, 0, 0, 1, 0, 3, 0]]


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_the_mask_of_the_weighted_scores_by_hand(wire: str) -> None:
    """n = 1 (A) and 3 (B), mean = (A + 3 B) / 4; 4 of 10 weights.

    layer 0   2 1.5 0 | 1 0 1.1        layer 1   .75 .5 | 2.25 0
    Over all layers 2.25 2 1.5 1.1 win. A alone would keep 0 3 5 and 1, B alone 1 3 and 0 2.
    """
    server = two_layers()
    dense = {name: w.clone() for name, w in server.dense_weights().items()}
    probe(SSFL(density=0.4, score_wire=wire), server, SCORES)
    layers = server.layers
    assert layers["0"].topology.flat().tolist() == [0, 1, 5]
    assert layers["1"].topology.flat().tolist() == [2]
    assert torch.equal(layers["0"].values, dense["0"].flatten()[[0, 1, 5]]), "the initial weights are kept"
    assert server.mask_version == 1


@pytest.mark.parametrize(("wire", "sent"), [("fp32", [70000.0, 65520.0, 4190109.7]), ("fp16", [65504.0] * 3)])
def test_only_what_cannot_travel_is_cut(wire: str, sent: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """10 weights of |g w| = 7000, 6552, 1e9 and seven 1: times 10. Sums hold less than 2^22 = 4194304."""
    server, method = two_layers(), SSFL(density=0.4, score_wire=wire)
    scores = {"0": torch.tensor([[7000.0, 6552, 1e9], [1, 1, 1]]), "1": torch.ones(2, 2)}
    monkeypatch.setattr(score, "snip", lambda *_: scores)
    client = Client(0, 0, 0, server.model, toy_loop(method).experiment.train, np.arange(4), Training())
    answer = method.score_weights(client, {})["scores"]
    assert answer.array.tolist() == pytest.approx([*sent, *[10.0] * 7])
    probe(method, server, [answer.array.tolist()] * 2)
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2, 3], "of the equal ones the lowest"


def test_by_layer_the_density_of_each_is_kept() -> None:
    """Uniform densities: 4 of 10 are 2.4 of 6 and 1.6 of 4, rounded to 2 and 2."""
    server = two_layers()
    probe(SSFL(density=0.4, distribution="uniform"), server, SCORES)
    assert server.layers["0"].topology.flat().tolist() == [0, 1]
    assert server.layers["1"].topology.flat().tolist() == [0, 2]


def test_ties_go_to_the_lower_index() -> None:
    server = two_layers()
    probe(SSFL(density=0.4), server, [[1.0] * 10, [1.0] * 10])
    assert server.layers["0"].topology.flat().tolist() == [0, 1, 2, 3]
    assert server.layers["1"].topology.nnz == 0


@pytest.mark.parametrize(
    ("scores", "words"),
    [([1.0] * 9, "size"), ([-1.0, *[1.0] * 9], "below 0"), ([float("inf")] * 10, "not finite")],
)
def test_bad_scores_are_refused(scores: list[float], words: str) -> None:
    with pytest.raises(UpdateError, match=words):
        probe(SSFL(density=0.4), two_layers(), [scores])


def toy_loop(method: SSFL, rounds: int = 3) -> Loop:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    images = torch.randn(24, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
    data = Dataset("toy", images, labels, 2, (0.0,), (1.0,))
    torch.manual_seed(0)
    head = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*head, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    parts = [np.arange(0, 8), np.arange(8, 24)]
    return Loop(Experiment(model, method, data, data, parts, Training(rounds, 2, 2, 8, lr=0.05)))


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("granularity", [1, 4])
def test_the_mask_is_that_of_the_clients_saliency(granularity: int, batches: int) -> None:
    """|g w| by autograd on each client's first minibatches, in train mode, summed over groups and weighted 8 : 16."""
    method = SSFL(density=0.3, granularity=granularity, batches=batches)
    loop = toy_loop(method)
    loop.open()
    V, total = granularity, torch.zeros(548 // granularity)
    for id, part in enumerate(loop.experiment.parts):
        loop.experiment.model.train()
        client = Client(id, 0, 0, loop.experiment.model, loop.experiment.train, part, loop.experiment.training)
        weights = [loop.experiment.model[0].weight, loop.experiment.model[4].weight]
        drawn = list(client.batches("saliency"))[:batches]
        loss = torch.stack([functional.cross_entropy(client.model(x), y) for x, y in drawn]).mean()
        gradients = torch.autograd.grad(loss, weights)
        scores = [(g * w).abs().reshape(len(w) // V, V, -1).sum(1).flatten() for g, w in zip(gradients, weights)]
        total += len(part) / 24 * torch.cat(scores).detach()
    count = round(0.3 * 548 / V)
    assert set(exchange.mask(loop.server.model).nonzero().flatten().tolist()) == set(total.topk(count).indices.tolist())
    assert all(layer.granularity == V for layer in sparse_layers(loop.server.model).values())


def test_scores_travel_once_and_the_mask_never_changes() -> None:
    loop = toy_loop(SSFL(density=0.3, prune_last=True), rounds=3)
    loop.open()
    mask = exchange.mask(loop.server.model)
    half = toy_loop(SSFL(density=0.3, prune_last=True, score_wire="fp16"))
    half.open()
    assert loop.opening["bytes_up"] - half.opening["bytes_up"] == 2 * 2 * 564
    assert 0 < loop.opening["bytes_up"] - 2 * 4 * 564 < 2 * 200, "headers"
    count = loop.server.parameter_count + loop.server.buffer_count
    assert count < 0.3 * 564 + 40
    for t in range(3):
        record = loop.round(t)
        assert record["rejected"] == []
        assert torch.equal(exchange.mask(loop.server.model), mask)
        up = record["bytes_up"] - (loop.opening["bytes_up"] if t == 0 else 0)
        assert 0 < up - 2 * 4 * count < 2 * 200
        assert record["mask_change"] == 0.0


def test_at_low_density_it_still_learns() -> None:
    loop = toy_loop(SSFL(density=0.15, distribution="erk"), rounds=8)
    loop.open()
    records = [loop.round(t) for t in range(8)]
    assert records[-1]["accuracy"] > 0.85
    assert records[-1]["density"] == pytest.approx(0.15, abs=0.01)
