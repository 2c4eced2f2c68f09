"""What rounding takes from a report is added to the client's next one, whatever happens in between."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_program import METHODS, digest, experiment
from torch import Tensor, nn

from fedsparse.config import ConfigError, from_tables
from fedsparse.config.experiment import experiment_of
from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Training, exchange, faults, feedback, run
from fedsparse.federated.journal import resumable
from fedsparse.methods import FedAvg
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Carrier, Values, decode, encode

DATA = Dataset("toy", torch.zeros(2, 1, 1, 4), torch.arange(2), 2, (0.0,), (1.0,))


def reported(model: nn.Module, wire: Carrier, kept: bytes, round: int = 0) -> tuple[Tensor, bytes]:
    """What the server reads of a client that reports this model, and what the client keeps."""
    client = Client(3, round, 0, model, DATA, np.arange(2), Training(), wire)
    client.feedback, client.kept = True, kept
    section = decode(encode("report", round, 3, FedAvg().report(client))).sections["parameters"]
    assert isinstance(section, Values)
    return section.tensor().clone(), client.keeps


def residual(kept: bytes) -> list[float]:
    section = decode(kept).sections["residual"]
    assert isinstance(section, Values)
    return section.array.tolist()


def line(*weights: float) -> nn.Linear:
    """A layer with these weights and no bias."""
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights], dtype=torch.float32)
    return layer


def test_by_hand() -> None:
    """bfloat16 has 8 bits: 2 apart from 256 on, 4 from 512 on, ties to even. 257 is sent as 256, 515 as 516."""
    sent, kept = reported(line(257, 515), "bf16", b"")
    assert (sent.tolist(), residual(kept)) == ([256, 516], [1, -1])
    sent, kept = reported(line(257, 515), "bf16", kept)  # 258, 514 (a tie: 512 has the even digit)
    assert (sent.tolist(), residual(kept)) == ([258, 512], [0, 2])
    sent, kept = reported(line(257, 514), "bf16", kept)
    assert (sent.tolist(), residual(kept)) == ([256, 516], [1, 0])


@pytest.mark.parametrize("wire", ["fp16", "bf16", "int8"])
def test_the_messages_sum_to_what_was_meant_up_to_the_last_residual(wire: Carrier) -> None:
    generator = torch.Generator().manual_seed(0)
    meant, said, kept = torch.zeros(60, dtype=torch.float64), torch.zeros(60, dtype=torch.float64), b""
    for round in range(50):
        weights = torch.randn(60, generator=generator)
        sent, kept = reported(line(*weights.tolist()), wire, kept, round)
        meant, said = meant + weights.double(), said + sent.double()
        off = meant - said
        np.testing.assert_allclose(off, residual(kept), atol=1e-5)
        step = float((weights.abs().max() + off.abs().max()) / 127)
        assert float(off.abs().max()) < 2 * step, "errors do not add up"


def masked(mask: list[list[int]], weight: list[list[float]], bias: list[float], granularity: int = 1) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(mask[0]), len(mask)))
    dense = torch.tensor(weight, dtype=torch.float32)
    model[1].weight.data, model[1].bias.data = dense, torch.tensor(bias, dtype=torch.float32)
    return sparsify(model, masks={"1": torch.tensor(mask).bool()}, granularity=granularity)


def test_a_residual_moves_with_the_mask() -> None:
    """Place 0 leaves with its residual of 1, place 1 keeps -1, place 2 starts at 0; the bias has no mask."""
    _, kept = reported(masked([[1, 1, 0, 0]], [[257, 515, 0, 0]], [257]), "bf16", b"")
    assert residual(kept) == [1, -1, 1]
    sent, kept = reported(masked([[0, 1, 1, 0]], [[0, 515, 257, 0]], [257]), "bf16", kept)
    assert sent.tolist() == [512, 256, 258]
    assert residual(kept) == [2, 1, 0]


def test_a_residual_moves_with_a_mask_of_vectors() -> None:
    """Two rows share their columns, and the values are row by row: row 0 has 257 and 258, row 1 515 and 516."""
    _, kept = reported(masked([[1, 1, 0], [1, 1, 0]], [[257, 258, 0], [515, 516, 0]], [0, 0], 2), "bf16", b"")
    assert residual(kept) == [1, 0, -1, 0, 0, 0]
    sent, _ = reported(masked([[1, 0, 1], [1, 0, 1]], [[257, 0, 257], [515, 0, 515]], [0, 0], 2), "bf16", kept)
    assert sent.tolist() == [258, 256, 512, 516, 0, 0]


def test_a_client_that_changes_its_mask_keeps_its_residual_under_its_own() -> None:
    model = masked([[1, 1, 0, 0]], [[257, 515, 0, 0]], [0])
    sparse_layers(model)["1"].set_topology(Topology.from_mask(torch.tensor([[False, True, False, True]])))
    sparse_layers(model)["1"].values.data = torch.tensor([515.0, 257.0])
    _, kept = reported(model, "bf16", b"")
    mask = decode(kept).sections["mask"]
    assert isinstance(mask, Bitmap)
    assert mask.bits.mask().tolist() == [False, True, False, True]
    assert residual(kept) == [-1, 1, 0]


def trial(name: str, **settings: int) -> Experiment:
    """Of the 4 clients all work in every round, but where the settings say otherwise."""
    found = replace(experiment(METHODS[name]), wire="int8", error_feedback=True)
    return replace(found, training=replace(found.training, **{"clients_per_round": 4, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fedavg", "feddst", "fedtiny", "prunefl"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    """Of 4 clients 3 work in a round, so that one's residual waits for a later one."""
    some = trial(name, clients_per_round=3)
    run(some, tmp_path)
    whole = digest(tmp_path)
    for rounds in (2, 1):
        run(some, tmp_path, start=resumable(tmp_path, some, rounds))
        assert digest(tmp_path) == whole


@pytest.fixture
def after_a_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Loop, dict[int, bytes]]]:
    loop = Loop(trial("feddst"))
    loop.open()
    loop.round(0)
    yield loop, dict(loop.workers.kept)
    monkeypatch.undo()
    faults.planned.cache_clear()


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        *(("report:nan", "rejected"), ("report:garbage", "rejected"), ("report:stale", "rejected")),
        *(("report:raise", "dropped"), ("train:raise", "dropped")),
    ],
)
def test_a_report_that_is_not_summed_leaves_its_client_what_it_had(
    fault: str, where: str, after_a_round: tuple[Loop, dict[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, before = after_a_round
    assert sorted(before) == [0, 1, 2, 3]
    monkeypatch.setenv(faults.VARIABLE, f"0:1:{fault}")
    faults.planned.cache_clear()
    record = loop.round(1)
    assert [entry["client"] for entry in record[where]] == [0]
    assert loop.workers.kept[0] == before[0]
    assert all(loop.workers.kept[id] != before[id] for id in (1, 2, 3))
    assert {decode(kept).round for kept in loop.workers.kept.values()} == {0, 1}
    loop.round(2)
    assert {decode(kept).round for kept in loop.workers.kept.values()} == {2}


def test_clients_trained_together_of_whom_one_fails_count_their_residuals_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report of client 1 raises, after client 0 has made its own: all work again, one by one."""
    outcomes = []
    for cohort in (1, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
        loop = Loop(replace(trial("fedavg", cohort=cohort, epochs=1), model=model))
        loop.open()
        loop.round(0)
        seen: list[int] = []

        def once(client: Client, seed: int, seen: list[int] = seen, original: Any = feedback.parameters) -> Values:
            seen.append(client.id)
            if client.id == 1 and seen.count(1) == 1 and client.training.cohort > 1:
                raise RuntimeError("once")
            return original(client, seed)

        monkeypatch.setattr(feedback, "parameters", once)
        before = dict(loop.workers.kept)
        loop.round(1)
        monkeypatch.undo()
        assert loop.workers.kept.keys() == before.keys()
        outcomes.append((seen, exchange.parameters(loop.server.model)))
    (one, alone), (three, together) = outcomes
    assert (one, three) == ([0, 1, 2, 3], [0, 1, 0, 1, 2, 3])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_without_it_clients_keep_nothing() -> None:
    loop = Loop(replace(trial("feddst"), error_feedback=False))
    loop.open()
    loop.round(0)
    assert loop.workers.kept == {}


def test_feedback_of_errors_that_nothing_makes_is_refused() -> None:
    sentence = "wire.error_feedback is true, but wire.values 'fp32' loses nothing; choose fp16, bf16 or int8"
    tables = {"method": {"name": "fedavg"}}
    with pytest.raises(ConfigError) as error:
        experiment_of(from_tables({**tables, "wire": {"error_feedback": True}}))
    assert str(error.value) == sentence
    with pytest.raises(ValueError, match="loses nothing"):
        replace(experiment(METHODS["fedavg"]), error_feedback=True)
    assert experiment_of(from_tables({**tables, "wire": {"values": "int8", "error_feedback": True}})).error_feedback
