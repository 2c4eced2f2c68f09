import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Method, Server, Training, exchange, run
from fedsparse.federated import loop as loop_module
from fedsparse.federated.method import Ask, Sections
from fedsparse.methods import FedAvg, FedTiny
from fedsparse.wire import BitmapSpec, Section, Values, decode


def toy_data(samples: int = 30, classes: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    images = torch.randn(samples, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
    return Dataset("toy", images, labels, classes, (0.0,), (1.0,))


def toy_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def toy(method: Method, rounds: int = 3, model: nn.Module | None = None, **training: object) -> Experiment:
    data = toy_data()
    parts = [np.arange(0, 6), np.arange(6, 16), np.arange(16, 30)]
    settings = Training(rounds, **{"clients_per_round": 3, "epochs": 2, "batch_size": 5, **training})  # type: ignore[arg-type]
    return Experiment(model or toy_model(), method, data, data, parts, settings, seed=3)


def test_a_round_of_fedavg_equals_plain_torch() -> None:
    """Each client from the same weights by plain SGD with momentum; then the mean weighted 6, 10, 14 of 30."""
    experiment = toy(FedAvg(), rounds=1, lr=0.1, momentum=0.5, weight_decay=0.01)
    loop = Loop(experiment)
    loop.open()
    loop.round(0)
    expected = torch.zeros(sum(p.numel() for p in experiment.model.parameters()), dtype=torch.float64)
    moments = torch.zeros(8, dtype=torch.float64)
    for id, part in enumerate(experiment.parts):
        model = copy.deepcopy(experiment.model).train()
        client = Client(id, 0, 3, model, experiment.train, part, experiment.training)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
        for epoch in range(2):
            for x, y in client.batches(f"epoch {epoch}"):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        share = len(part) / 30
        expected += share * torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
        moments += share * torch.cat([model[1].running_mean, model[1].running_var]).double()
    assert (exchange.parameters(loop.server.model) - expected).abs().max() < 1e-6
    assert (exchange.buffers(loop.server.model) - moments).abs().max() < 1e-6


def test_bytes_are_those_of_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte that `encode` made is counted once a receiver: weights and mask down, reports up."""
    made: list[tuple[str, int, bytes]] = []
    true_encode = loop_module.encode

    def spy(kind: str, round: int, sender: int, sections: dict[str, Section]) -> bytes:
        data = true_encode(kind, round, sender, sections)
        made.append((kind, round, data))
        return data

    monkeypatch.setattr(loop_module, "encode", spy)
    monkeypatch.setattr("fedsparse.federated.mask_change.encode", spy)
    monkeypatch.setattr("fedsparse.federated.worker.encode", spy)
    loop = Loop(toy(FedAvg(density=0.5), rounds=2))
    loop.open()
    records = [loop.round(t) for t in range(2)]
    size = {(kind, t): len(data) for kind, t, data in made if kind != "report"}
    assert records[0]["bytes_down"] == 3 * (size["weights", 0] + size["mask", 0])
    assert records[1]["bytes_down"] == 3 * size["weights", 1], "the mask is common knowledge now"
    for t in range(2):
        assert records[t]["bytes_up"] == sum(len(data) for kind, at, data in made if (kind, at) == ("report", t))
    result = loop.result("complete", 1.0)
    assert result["bytes_up"] == sum(r["bytes_up"] for r in records)
    weights = decode(next(data for kind, _, data in made if kind == "weights"))
    assert weights.sections["parameters"].nbytes == 4 * (18 + 4 + 4 + 48 + 3)


def test_a_fixed_mask_stays_and_pruned_weights_are_never_stored() -> None:
    loop = Loop(toy(FedAvg(density=0.5, initial="magnitude")))
    loop.open()
    mask = exchange.mask(loop.server.model)
    weight = loop.experiment.model[0].weight.detach().abs().flatten()
    assert set(mask.nonzero().flatten().tolist()) == set(weight.topk(18).indices.tolist())
    for t in range(3):
        loop.round(t)
    assert torch.equal(exchange.mask(loop.server.model), mask)
    assert loop.server.layers["0"].values.shape == (18,)


@pytest.mark.parametrize("initial", ["random", "magnitude", "snip", "grasp", "synflow"])
@pytest.mark.parametrize("distribution", ["erk", "global"])
def test_every_initial_mask_has_its_count(initial: str, distribution: str) -> None:
    method = FedAvg(density=0.25, initial=initial, distribution=distribution, prune_last=True)  # type: ignore[arg-type]
    loop = Loop(toy(method, rounds=1))
    loop.open()
    assert sum(layer.topology.nnz for layer in loop.server.layers.values()) == round(0.25 * (36 + 48))
    assert loop.round(0)["rejected"] == []
    if initial in ("snip", "grasp"):
        assert loop.opening["bytes_up"] > 0, "the mask was scored on a client and sent"


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    def weights(seed: int) -> torch.Tensor:
        experiment = toy(FedTiny(density=0.5, interval=1, last=3, rate=0.4), clients_per_round=2)
        loop = Loop(Experiment(**{**experiment.__dict__, "seed": seed}))
        loop.open()
        for t in range(3):
            loop.round(t)
        return exchange.parameters(loop.server.model)

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


class Saboteur(FedAvg):
    """Client 1 reports NaN, client 2 a vector that would broadcast."""

    def report(self, client: Client) -> dict[str, Section]:
        sections = super().report(client)
        if client.id == 1:
            sections["parameters"] = Values(torch.full((client_size(client),), float("nan")))
        if client.id == 2:
            sections["parameters"] = Values(torch.ones(1))
        return sections


def client_size(client: Client) -> int:
    return sum(p.numel() for p in client.model.parameters())


def test_bad_updates_are_rejected_counted_and_named() -> None:
    record_of = Loop(toy(Saboteur(), rounds=1))
    record_of.open()
    record = record_of.round(0)
    assert record["clients"] == [0]
    assert [r["client"] for r in record["rejected"]] == [1, 2]
    assert "not finite" in record["rejected"][0]["reason"]
    assert "size" in record["rejected"][1]["reason"]
    alone = Loop(toy(FedAvg(), rounds=1))
    alone.experiment.parts[1], alone.experiment.parts[2]
    assert bool(torch.isfinite(exchange.parameters(record_of.server.model)).all())


def test_training_learns_and_costs_are_recorded(tmp_path: Path) -> None:
    seen = []
    result = run(toy(FedTiny(density=0.5, interval=2, last=8, rate=0.3), rounds=8, lr=0.1), tmp_path, seen.append)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(seen))
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["status"] == "complete"
    assert result["accuracy"] > 0.8
    assert result["macs"] < result["dense_macs"]
    assert result["peak_bytes"] > 0
    assert [r["mask_change"] > 0 for r in lines] == [t in (2, 4, 6) for t in range(8)]


def test_evaluation_every_second_round_and_at_the_end() -> None:
    result = []
    run(toy(FedAvg(), rounds=4, eval_every=3), on_round=lambda r: result.append(r["accuracy"] is not None))
    assert result == [False, False, True, True]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupt(record: dict) -> None:
        if record["round"] == 1:
            raise KeyboardInterrupt

    result = run(toy(FedAvg(), rounds=5), tmp_path, interrupt)
    assert (result["status"], result["rounds"]) == ("interrupted", 2)
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "interrupted"


def test_sampling_is_uniform_without_replacement_and_seeded() -> None:
    loop = Loop(toy(FedAvg(), clients_per_round=2))
    draws = [loop._sample(t) for t in range(300)]
    assert all(len(set(d)) == 2 for d in draws)
    assert draws == [loop._sample(t) for t in range(300)]
    assert all(150 < sum(id in d for d in draws) < 250 for id in range(3))


@pytest.mark.parametrize("wire", ["fp16", "bf16", "int8"])
def test_a_lossy_wire_takes_as_many_bytes_less_as_its_numbers_are_shorter(wire: str) -> None:
    """Two bytes a parameter less, or three but for the 8 bytes of each tensor; and two a statistic."""
    full = toy(FedAvg(), rounds=1)
    records = []
    for experiment in (full, replace(full, wire=wire)):
        loop = Loop(experiment)
        loop.open()
        records.append(loop.round(0))
    sizes = [p.numel() for p in full.model.parameters()]
    statistics = sum(b.numel() for b in full.model.buffers() if b.is_floating_point())
    saved = 2 * statistics + (3 * sum(sizes) - 8 * len(sizes) if wire == "int8" else 2 * sum(sizes))
    table = 1 if wire == "int8" else 0  # a second number in the section's line of the header
    for direction in ("bytes_up", "bytes_down"):
        assert abs(records[0][direction] - records[1][direction] - 3 * saved) <= 3 * table


def test_a_run_with_int8_values_is_reproducible_and_depends_on_the_seed() -> None:
    experiment = replace(toy(FedAvg(), rounds=2), wire="int8")
    models = []
    for seed in (0, 0, 1):
        loop = Loop(replace(experiment, seed=seed))
        loop.open()
        for t in range(2):
            loop.round(t)
        models.append(exchange.parameters(loop.server.model))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_a_public_share_pretrains_the_model_before_the_mask() -> None:
    plain = Loop(toy(FedAvg(), rounds=1))
    experiment = toy(FedAvg(), rounds=1)
    taught = Loop(Experiment(**{**experiment.__dict__, "public": np.arange(10)}))
    for loop in (plain, taught):
        loop.open()
    assert torch.equal(exchange.parameters(plain.server.model), exchange.parameters(plain.experiment.model))
    assert not torch.equal(exchange.parameters(taught.server.model), exchange.parameters(plain.server.model))


def test_what_clients_fail_at_before_round_0_is_named_and_its_memory_counted() -> None:
    class Broken(FedAvg):
        def score_mask(self, client: Client, sections: Sections) -> dict[str, Section]:
            answer = super().score_mask(client, sections)
            if client.id == 2:
                raise RuntimeError("out of order")
            return answer

        def probe(self, server: Server, ask: Ask) -> None:
            weights = {name: section for name, section in self.report(self.holder(server)).items()}
            expect = {"mask": BitmapSpec(exchange.mask_size(server.model, server.names, 1))}
            total = ask("score_mask", weights, expect, None)
            assert sorted(total.clients) == [0, 1]
            super().probe(server, lambda *arguments: ask(*arguments[:3], [0]))

        def holder(self, server: Server) -> Client:
            data = toy_data()
            return Client(0, 0, 0, server.model, data, np.arange(6), Training())

    loop = Loop(toy(Broken(density=0.5, initial="snip"), rounds=1))
    loop.open()
    assert [r["client"] for r in loop.opening["dropped"]] == [2]
    assert "out of order" in loop.opening["dropped"][0]["reason"]
    assert loop.opening["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedAvg(density=0.5, initial="nope"), "fedavg.initial is 'nope'"),  # type: ignore[arg-type]
        (lambda: FedAvg(density=2.0), "fedavg.density is 2.0"),
        (lambda: FedTiny(interval=0), "fedtiny.interval is 0"),
        (lambda: FedTiny(rate=9.0), "fedtiny.rate is 9.0"),
        (lambda: Training(optimizer="foo"), "optimizer is 'foo'"),  # type: ignore[arg-type]
        (lambda: Training(lr_schedule="foo"), "lr_schedule is 'foo'"),  # type: ignore[arg-type]
        (lambda: Training(rounds=0), "rounds is 0"),
        (lambda: Training(clients_per_round=0), "clients_per_round is 0"),
    ],
)
def test_settings_from_python_are_held_against_their_ranges(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
