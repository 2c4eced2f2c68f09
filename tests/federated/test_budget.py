"""Memory limits by client: what is chosen, that measured peaks stay below them, and that the choice is the same again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Training, exchange, run
from fedsparse.federated.budget import SHARE, Budget
from fedsparse.federated.client import iterate
from fedsparse.federated.errors import BudgetError
from fedsparse.federated.journal import resumable
from fedsparse.federated.loop import Loop
from fedsparse.federated.method import Method
from fedsparse.federated.plan import Plan, plan_for, section_of
from fedsparse.federated.result import Record
from fedsparse.methods import FedAvg, FedDST, FedTiny, PruneFL

ROOMY = 2**30


@pytest.fixture(autouse=True, scope="module")
def _only_own_garbage() -> Iterator[None]:
    """A trial collects garbage before it measures; that need not look through all that pytest has imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def net(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 16, 16, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))


def experiment(method: Method, limits: list[int] | None, norm: bool = True, **training: object) -> Experiment:
    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = Dataset("toy", images, torch.arange(200) % 4, 4, (0.0,) * 3, (1.0,) * 3)
    parts = np.split(np.arange(200), [64, 128, 192])  # the last client has 8 samples
    settings = {"rounds": 2, "clients_per_round": 4, "batch_size": 32, "epochs": 1} | training
    return Experiment(net(norm), method, data, data, parts, Training(**settings), memory_limits=limits)  # type: ignore[arg-type]


def peaks(method: Method, norm: bool = True) -> Budget:
    """A budget whose trials are those of every plan for 64 samples, none of which fits a byte."""
    loop = Loop(experiment(method, [1, ROOMY, ROOMY, ROOMY], norm))
    with pytest.raises(BudgetError):
        loop.open()
    return loop.budget


def test_pieces_of_a_minibatch_differ_by_one_and_none_exceeds_its_share() -> None:
    data = experiment(FedAvg(), None).train
    client = Client(0, 0, 0, net(), data, np.arange(32), Training(batch_size=32, pieces=5))

    def sizes(samples: int) -> list[int]:
        return [len(y) for _, y in client.pieces(torch.zeros(samples, 1), torch.zeros(samples))]

    assert sizes(32) == [7, 7, 6, 6, 6], "at most ceil(32 / 5) = 7, so five of them"
    assert sizes(8) == [4, 4]
    assert sizes(7) == [7]


def test_a_split_step_is_the_whole_batchs_without_batch_norm() -> None:
    """float64: the weights after a step in pieces of 7 and 6 equal those of the whole minibatch of 32."""
    data = experiment(FedAvg(), None).train
    x, y = data.batch(np.arange(32))
    after = []
    for pieces in (1, 5):
        model = net(norm=False).double()
        client = Client(0, 0, 0, model, data, np.arange(32), Training(batch_size=32, lr=0.1, pieces=pieces))
        output, loss = iterate(client, Method(), x.double(), y)
        assert output.shape == (32, 4)
        after.append((torch.cat([p.detach().flatten() for p in model.parameters()]), loss))
    torch.testing.assert_close(after[0], after[1], rtol=1e-12, atol=1e-12)


def test_a_run_trains_in_the_pieces_asked_for() -> None:
    """Without batch norm it learns the same to rounding, and its clients take less (measured: .60)."""
    records: dict[int, list[Record]] = {1: [], 4: []}
    for pieces, rounds in records.items():
        run(experiment(FedAvg(density=0.2), None, norm=False, pieces=pieces), on_round=rounds.append)
    for whole, cut in zip(*records.values(), strict=True):
        assert cut["peak_bytes"] < 0.7 * whole["peak_bytes"]
        assert cut["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)


def test_plans_begin_with_the_pieces_asked_for() -> None:
    loop = Loop(experiment(FedAvg(density=0.2), [1, ROOMY, ROOMY, ROOMY], pieces=3))
    with pytest.raises(BudgetError):
        loop.open()
    assert [key.split(",")[1] for key in loop.budget.trials][::3] == [" 3 pieces", " 6 pieces"], "12 would be of 3"


def test_pieces_too_small_for_batch_norm_are_refused() -> None:
    assert experiment(FedAvg(), None, pieces=8).training.pieces == 8, "32 samples in 8 pieces of 4"
    with pytest.raises(ValueError, match="pieces is 9, .* of at least 4 samples.* would have 3"):
        experiment(FedAvg(), None, batch_size=27, pieces=9)
    assert experiment(FedAvg(), None, norm=False, pieces=32).training.pieces == 32
    with pytest.raises(ValueError, match=r"pieces is 33, but a minibatch has 32 samples"):
        experiment(FedAvg(), None, norm=False, pieces=33)
    with pytest.raises(ValueError, match="pieces is 2 and cohort 2"):
        experiment(FedAvg(), None, pieces=2, cohort=2)


def test_a_plan_travels_by_client() -> None:
    sections = {"plans": section_of({7: Plan("recompute", 2), 3: Plan("dense", 1)})}
    assert plan_for(7, sections) == Plan("recompute", 2)
    assert plan_for(3, sections) == Plan("dense", 1)
    assert plan_for(4, sections) is None
    assert plan_for(4, {}) is None


def test_the_first_plan_that_fits_is_taken_levels_before_pieces() -> None:
    """Limits are set from the trials' own peaks: a byte less than a plan's need goes to the next that needs less."""
    trials = peaks(FedAvg(density=0.2)).trials
    order = [key.split(", 64 samples")[0] for key in trials]
    assert order == [f"{level}, {n} pieces" for n in (1, 2, 4, 8) for level in ("dense", "lossless", "recompute")]
    by_plan = dict(zip(order, trials.values()))
    assert by_plan["recompute, 1 pieces"] < by_plan["lossless, 1 pieces"] < by_plan["dense, 1 pieces"]
    assert by_plan["dense, 2 pieces"] < by_plan["dense, 1 pieces"]

    def chosen(limit: float) -> Plan:
        loop = Loop(experiment(FedAvg(density=0.2), [int(limit), ROOMY, ROOMY, ROOMY]))
        loop.budget.trials = dict(trials)
        loop.open()
        return loop.budget.plans(loop.server, [0])[0]

    for plan in ("dense", "lossless", "recompute"):
        assert chosen(by_plan[f"{plan}, 1 pieces"] / SHARE + 1) == Plan(plan, 1)
    assert chosen(by_plan["recompute, 1 pieces"] / SHARE - 1).pieces > 1


def test_a_smaller_last_minibatch_has_a_trial_of_its_own() -> None:
    """10 samples are no whole block of images: their layers keep more than those of the 32 before them."""
    whole = experiment(FedAvg(density=0.2), None, activations="recompute", epochs=2)
    for samples, tried in ((42, ["32", "10"]), (74, ["64", "10"]), (65, ["64"]), (10, ["10"]), (1, ["1"])):
        limited = replace(whole, parts=[np.arange(samples)], memory_limits=[ROOMY])
        loop = Loop(replace(limited, training=replace(whole.training, clients_per_round=1)))
        loop.open()
        assert [key.split(", ")[2] for key in loop.budget.trials] == [f"{count} samples" for count in tried]
        if samples > 1:
            [entry] = loop.round(0)["plans"]
            assert entry["peak"] <= 1.01 * max(loop.budget.trials.values())


def test_a_limit_that_nothing_meets_is_refused_with_the_least_that_does() -> None:
    budget = peaks(FedAvg(density=0.2))
    least = int(np.ceil(min(budget.trials.values()) / SHARE))
    with pytest.raises(BudgetError, match=f"client 2 may take {least - 1} bytes .* a limit of at least {least},"):
        Loop(experiment(FedAvg(density=0.2), [ROOMY, ROOMY, least - 1, ROOMY])).open()
    Loop(experiment(FedAvg(density=0.2), [ROOMY, ROOMY, least, ROOMY])).open()


METHODS: list[Method] = [
    FedAvg(),
    FedDST(density=0.2, interval=1, rate=0.3, last=3),
    FedTiny(density=0.2, interval=1, last=3, blocks=1),
    PruneFL(initial_limit=0, interval=1, weight_seconds=1e-6, max_density=0.5),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'density', '')}")
def test_measured_peaks_stay_below_different_limits(method: Method, tmp_path: Path) -> None:
    """Limits between the least and the most that a round takes; the run again, and resumed, gives the same bits."""
    trials = peaks(method).trials
    most, least = max(trials.values()), min(trials.values())
    limits = [int(2 * most), int((most + least) / 2 / SHARE), int(least / SHARE) + 1, ROOMY]
    runs = []
    for out in (tmp_path / "once", tmp_path / "again"):
        out.mkdir()
        trial = experiment(method, limits)
        records: list[dict[str, object]] = []
        run(trial, out, records.append)
        runs.append([{k: v for k, v in r.items() if "seconds" not in k} for r in records])
    assert runs[0] == runs[1]
    for record in runs[0]:
        entries = record["plans"]
        assert [entry["client"] for entry in entries] == [0, 1, 2, 3]
        assert [entry["limit"] for entry in entries] == limits
        assert all(0 < entry["peak"] <= entry["limit"] for entry in entries), entries
        assert record["incidents"] == []
        assert entries[0]["pieces"] == entries[3]["pieces"] == 1
        assert entries[2]["pieces"] > 1
    start = resumable(tmp_path / "again", experiment(method, limits), 1)
    assert start is not None
    assert start.facts["trials"], "what was measured is not measured again"
    records = []
    run(experiment(method, limits), tmp_path / "again", records.append, start=start)
    assert [{k: v for k, v in r.items() if "seconds" not in k} for r in records] == runs[0][1:]


def test_levels_change_no_bit() -> None:
    """A limit that only `recompute` meets gives the weights of a run without limits."""
    method = FedAvg(density=0.2)
    found = peaks(method).trials
    limit = int(next(peak for key, peak in found.items() if key.startswith("recompute, 1 pieces")) / SHARE) + 1
    ends = []
    for limits in (None, [limit] * 4):
        loop = Loop(experiment(method, limits))
        loop.open()
        record = loop.round(0)
        assert all(entry["pieces"] == 1 for entry in record.get("plans", []))
        ends.append(exchange.parameters(loop.server.model))
    assert loop.plans[0] == Plan("recompute", 1)
    assert torch.equal(ends[0], ends[1])


def test_a_client_that_takes_more_than_its_limit_is_told() -> None:
    loop = Loop(experiment(FedAvg(density=0.2), [ROOMY] * 4))
    loop.open()
    loop.budget.experiment = replace(loop.experiment, memory_limits=[ROOMY, 1000, ROOMY, ROOMY])
    loop.budget.plans = lambda server, clients: dict.fromkeys(clients, Plan("dense"))  # type: ignore[method-assign]
    incidents = loop.round(0)["incidents"]
    assert [incident["client"] for incident in incidents] == [1]
    assert incidents[0]["reason"].endswith("bytes of its 1000")


def test_limits_are_of_clients_that_train_alone() -> None:
    with pytest.raises(ValueError, match="clients have memory limits, but training.cohort is 2"):
        experiment(FedAvg(), [ROOMY] * 4, cohort=2)


def test_every_client_has_a_limit() -> None:
    with pytest.raises(ValueError, match="3 memory limits for 4 clients"):
        experiment(FedAvg(), [1, 2, 3])
