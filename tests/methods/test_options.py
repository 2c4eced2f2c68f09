"""Options that every method takes: local optimizers, schedules, norms, granularity, layers, growth data, dT = 1."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from toy_runs import CLIENTS, Flat, toy_loop

from fedsparse.federated import Loop, Method, exchange
from fedsparse.federated.growth import growth_batches
from fedsparse.methods import SSFL, FedAvg, FedDST, FedMef, FedRTS, FedSGC, FedTiny, PruneFL
from fedsparse.nn import prunable, sparse_layers

EVERY = {"density": 0.3, "interval": 1, "last": 5}
METHODS: dict[str, Method] = {
    "fedavg": FedAvg(density=0.3),
    "ssfl": SSFL(density=0.3),
    "prunefl": PruneFL(interval=1, max_density=0.5, initial_limit=4, initial_interval=2, weight_seconds=1e-6),
    "feddst": FedDST(rate=0.3, **EVERY),
    "fedtiny": FedTiny(pool=2, blocks=1, **EVERY),
    "fedmef": FedMef(**EVERY),
    "fedsgc": FedSGC(rate=0.3, **EVERY),
    "fedrts": FedRTS(**EVERY),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
GROWING = ("feddst", "fedtiny", "fedmef", "fedsgc", "fedrts")
growing = pytest.mark.parametrize("method", [METHODS[name] for name in GROWING], ids=GROWING)


def play(loop: Loop, rounds: int = 3) -> list[dict[str, Any]]:
    """Rounds in which every report was used and the model stayed finite."""
    records = [loop.round(t) for t in range(rounds)]
    assert all(record["rejected"] == [] for record in records)
    assert bool(exchange.parameters(loop.server.model).isfinite().all())
    for layer in sparse_layers(loop.server.model).values():
        layer.topology.validate()
    return records


@every_method
@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adam", "lr": 0.002, "weight_decay": 1e-3},
        {"momentum": 0.0, "lr_schedule": "cosine", "lr_decay": 0.9},
        {"proximal": 1.0},
        {"batch_size": 1, "epochs": 1, "norm": "group"},
    ],
    ids=["adam", "sgd with schedules", "proximal", "batches of one and group norm"],
)
def test_every_local_training_goes_with_every_method(method: Method, training: dict[str, Any]) -> None:
    play(toy_loop(method, **training))


@every_method
def test_the_proximal_term_keeps_clients_near_the_server(method: Method) -> None:
    """After the first round the server's active weights moved less under mu = 20, from the same start."""
    moved = []
    for mu in (0.0, 20.0):
        loop = toy_loop(dataclasses.replace(method, initial_limit=0) if isinstance(method, PruneFL) else method)
        training = dataclasses.replace(loop.experiment.training, proximal=mu, momentum=0.0)
        loop.workers.worker.training = training  # type: ignore[attr-defined]
        before = exchange.parameters(loop.server.model)
        loop.round(0)
        moved.append(float((exchange.parameters(loop.server.model) - before).norm()))
    assert moved[1] < 0.8 * moved[0]


@every_method
def test_adjusting_every_round(method: Method) -> None:
    records = play(toy_loop(method), 4)
    if method.name == "prunefl":
        densities = [record["density"] for record in records]
        assert densities[0] > densities[1] > densities[2], "the size is an output, and full masks shrink"
    else:
        fixed = method.name in ("fedavg", "ssfl")
        assert [record["mask_change"] > 0 for record in records] == [False, *[not fixed] * 3]


def test_sampled_clients_and_initial_weights_are_the_same_for_every_method() -> None:
    """FedMef's layers stand in for convolution and norm, so of its initial weights the classifier's are compared."""
    loops = [toy_loop(method, clients_per_round=2) for method in METHODS.values() if method.name != "prunefl"]
    sampled = [[loop._sample(t) for t in range(10)] for loop in loops]
    assert all(one == sampled[0] for one in sampled)
    assert len({tuple(clients) for clients in sampled[0]}) > 1
    heads = [loop.server.model.get_submodule("head").get_parameter("weight") for loop in loops]
    assert all(torch.equal(head, heads[0]) for head in heads)


@every_method
@pytest.mark.parametrize("V", [2, 4])
def test_granularity_goes_with_every_method(method: Method, V: int) -> None:
    loop = toy_loop(dataclasses.replace(method, granularity=V))  # type: ignore[call-arg]
    play(loop, 4)
    for layer in sparse_layers(loop.server.model).values():
        assert layer.granularity == V
        mask = layer.topology.mask().flatten(1).unflatten(0, (-1, V))
        assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert 0 < loop.server.density() < 1


@every_method
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"conv1", "conv2", "hidden"}),
        ({"layers": "conv"}, {"conv1", "conv2"}),
        ({"layers": "linear"}, {"hidden"}),
        ({"layers": "linear", "prune_last": True}, {"hidden", "head"}),
    ],
    ids=["default", "convolutions", "linear layers", "the last one too"],
)
def test_which_layers_have_masks(method: Method, options: dict[str, Any], expected: set[str]) -> None:
    """A grouped convolution stays dense, and so does the last linear layer unless asked for."""
    loop = toy_loop(dataclasses.replace(method, **options))
    play(loop, 2)
    assert set(sparse_layers(loop.server.model)) == expected
    assert set(loop.server.densities()) == expected


def test_no_layer_of_the_type_is_refused() -> None:
    with pytest.raises(ValueError, match="method.layers is 'conv'"):
        FedAvg(density=0.5, layers="conv").prunes(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))


@every_method
def test_a_grouped_convolution_trains_dense(method: Method) -> None:
    loop = toy_loop(method)
    assert "grouped" not in prunable(loop.server.model, last=True)
    grouped = loop.server.model.get_submodule("grouped")
    before = grouped.get_parameter("weight").detach().clone()
    play(loop, 1)
    assert before.shape == (8, 2, 3, 3)
    assert not torch.equal(grouped.get_parameter("weight"), before)


@growing
@pytest.mark.parametrize("count", [1, 2, 0])
def test_growth_from_one_batch_several_or_all(method: Method, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 samples in batches of 20 growth sees 20, 40 or 40, never more than 20 at a time, which are all it holds.

    Of several batches the layers' gradients are summed together, since all of them are fewer than `growth.SUMMED`:
    one pass over both (smaller portions: `tests/federated/test_growth_over_batches.py`).
    """
    loop = toy_loop(dataclasses.replace(method, growth_batches=count), rounds=8)  # type: ignore[call-arg]
    seen: list[int] = []
    forward = Flat.forward
    monkeypatch.setattr(Flat, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    play(loop, 1)
    seen.clear()
    loop.round(1)
    assert set(seen) == {1, 20, 120}, "120 are the test's, 1 that whose multiply-adds are counted"
    training = CLIENTS * 2 * 2
    searches = 2 if method.name == "fedsgc" else 1
    passes = 1 if count == 1 else 2
    assert seen.count(20) - training == CLIENTS * searches * passes


def test_growth_batches_are_a_pass_over_the_data() -> None:
    loop = toy_loop(FedAvg())
    client = loop.workers.worker._client(0)  # type: ignore[attr-defined]
    assert [sum(len(y) for _, y in growth_batches(client, count)()) for count in (1, 2, 5, 0)] == [20, 40, 40, 40]


@growing
def test_decays(method: Method) -> None:
    """At t = 2 of T_end = 8 cosine leaves .854 of the first adjustment, linear .75, constant all of it."""
    sizes = {}
    for decay in ("cosine", "linear", "constant"):
        changed = dataclasses.replace(method, decay=decay, last=8)  # type: ignore[call-arg]
        loop = toy_loop(changed)
        model = loop.server.model
        counts = (
            changed.counts(model, 2, 8) if "dst" in method.name or "sgc" in method.name else changed.counts(model, 2)
        )  # type: ignore[attr-defined]
        sizes[decay] = counts["conv2"]
    nnz = sparse_layers(model)["conv2"].topology.nnz
    share = {"fedtiny": 0.3, "fedmef": 0.4, "fedrts": 0.4, "feddst": 0.3, "fedsgc": 0.3}[method.name]
    if method.name != "fedtiny":
        assert sizes == {
            d: int(share * c * nnz) for d, c in (("cosine", 0.8535533905932737), ("linear", 0.75), ("constant", 1.0))
        }
    assert sizes["constant"] > sizes["cosine"] > sizes["linear"]


def test_defaults_are_the_papers() -> None:
    """methods.md: PruneFL 50, .3; FedDST alpha .01 on CIFAR; FedTiny 10, 100, 5 blocks, .15; FedMef 10, 300, .2, 1e-4;
    FedSGC 20, .5, .5; FedRTS 10, 300, .4, gamma .5, lambda 10."""
    expected: dict[type[Method], dict[str, Any]] = {
        FedAvg: {"density": 1.0},
        PruneFL: {
            "interval": 50,
            "free": 0.3,
            "half_life": 10_000,
            "tolerance": 0.1,
            "patience": 5,
            "start_accuracy": 1.5,
        },
        FedDST: {"interval": 10, "rate": 0.01, "distribution": "erk", "initial": "random", "decay": "cosine"},
        FedTiny: {"interval": 10, "last": 100, "blocks": 5, "rate": 0.15, "pool": 0, "growth_batches": 1},
        FedMef: {"interval": 10, "last": 300, "rate": 0.2, "penalty": 1e-4, "gain": 1.0},
        FedSGC: {"interval": 20, "prune_guided": 0.5, "grow_guided": 0.5, "idle": "always"},
        FedRTS: {"interval": 10, "last": 300, "rate": 0.4, "fusion": 0.5, "strength": 10.0, "distribution": "erk"},
    }
    for method, fields in expected.items():
        found = method()
        assert {name: getattr(found, name) for name in fields} == fields, method.name
        assert (found.granularity, getattr(found, "prune_last", False), getattr(found, "layers", "all")) == (
            1,
            False,
            "all",
        )
    assert [FedDST().end, FedSGC().end] == [1 / 2, 2 / 3]
