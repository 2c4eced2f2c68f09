"""The profile of a step: sizes by hand on a net of two layers, and what must add up on any."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from invented_runs import MOMENTS, write_profile
from rich.console import Console
from torch import nn

from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Training, exchange
from fedsparse.federated.client import Client, iterate
from fedsparse.federated.meter import Counter
from fedsparse.federated.method import Method
from fedsparse.methods import FedAvg, FedDST, FedMef, FedTiny, PruneFL
from fedsparse.report.adjustment import adjustment
from fedsparse.report.kept import OTHER, REST
from fedsparse.report.memory_plot import memory_of_a_step, memory_picture, outline, read_profile
from fedsparse.report.profile import StepProfile, profiles
from fedsparse.report.profile_table import bytes_table, summary_table, time_table
from fedsparse.report.records import RecordError, RunRecord
from fedsparse.report.step_recorder import StepRecorder


def data(samples: int = 16) -> Dataset:
    images = torch.randn(samples, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("toy", images, torch.arange(samples) % 2, 2, (0.0,), (1.0,))


def experiment(density: float = 1.0, **training: object) -> Experiment:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 2),
    )
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    set = Dataset("toy", images, torch.arange(32) % 2, 2, (0.0,) * 3, (1.0,) * 3)
    return Experiment(
        model,
        FedAvg(density=density),
        set,
        set,
        [np.arange(32)],
        Training(batch_size=32, **training),  # type: ignore[arg-type]
    )


def of(trial: Experiment, steps: int) -> list[StepProfile]:
    loop = Loop(trial)
    loop.open()
    return profiles(trial, loop, steps)


def test_what_layers_keep_by_hand() -> None:
    """Batch 16, 4 -> 8 -> 2, no biases. The first product keeps its input, which is the batch, and so nothing new; ReLU
    keeps its own output, 16 * 8 floats, which the second product keeps too: counted once. The loss keeps its
    log-probabilities, 16 * 2, and the total weight that the mean divides by; the logits and the loss itself are alive.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    client = Client(0, 0, 0, net, data(), np.arange(16), Training(batch_size=16))
    x, y = client.data.batch(client.index)
    for _ in range(2):  # torch's own buffers are there from the first step on
        net.zero_grad()
        recorder = StepRecorder(Method(), Counter(torch.device("cpu")))
        with recorder.watching(net):
            iterate(client, recorder, x, y)  # type: ignore[arg-type]
    kept = {name: cost.kept for name, cost in recorder.layers.items() if cost.kept}
    assert kept == {"2": {"activations": 512}, REST: {"activations": 128 + 4, OTHER: 128 + 4}}
    assert recorder.kept == 512 + 132 + 132
    held = {name: cost.held for name, cost in recorder.layers.items() if cost.held}
    assert held == {
        "1": {"weights": 128, "optimizer": 128, "gradients": 128},
        "3": {"weights": 64, "optimizer": 64, "gradients": 64},
    }
    for layer in ("1", "2", "3", REST):
        assert recorder.layers[layer].backward > 0, layer
    assert recorder.layers["1"].forward > 0
    assert 0 < recorder.marks["backward"] < recorder.marks["optimizer"]


WHOLE, STATISTICS = 32 * 16 * 8 * 8 * 4, 2 * 16 * 4
"""Bytes of an activation of the net of `experiment`, and of a mean and a deviation a channel."""
INPUT = 32 * 3 * 8 * 8 * 4
OF_THE_LOSS = {"activations": 32 * 2 * 4 + 4, OTHER: 32 * 2 * 4 + 4}
NORM = {"activations": WHOLE, "statistics": STATISTICS}
DENSE = {"1": NORM, "2": {"activations": WHOLE}, "4": NORM, "5": {"activations": WHOLE}}
LEAVES = {"activations": WHOLE}
"""The tensor that the linear layer has: what left the blocks."""


def packed(entries: int, count: int) -> dict[str, int]:
    """32 images in 2 blocks of 16: a bit an entry, `count` bfloat16 an image, and where the blocks' values start."""
    return {"packed": 32 * entries // 8 + 32 * count * 2 + 3 * 8}


SPARSE: dict[str, dict[str, dict[str, int]]] = {
    # A norm runs with its ReLU, in the latter; what it keeps of a convolution's output is its own.
    "dense": {"0": {"activations": INPUT}, "2": NORM, "3": {"activations": WHOLE}, "5": NORM, "7": LEAVES},
    # The first convolution has so few weights that it is run again; factors and shifts make the ReLU's output again.
    "lossless": {
        "0": {"activations": INPUT}, "2": {"statistics": STATISTICS}, "3": {"statistics": STATISTICS},
        "5": NORM, "7": LEAVES,
    },
    "bf16": {
        "0": {"activations": INPUT}, "2": {"statistics": STATISTICS}, "3": {"statistics": STATISTICS},
        "5": {"bfloat16": WHOLE // 2, "bits": WHOLE // 32, "statistics": STATISTICS}, "7": LEAVES,
    },
    "recompute": {
        "0": {"activations": INPUT}, "2": {"statistics": STATISTICS}, "3": {"statistics": STATISTICS},
        "5": {"statistics": STATISTICS}, "7": LEAVES,
    },
    # A fifth of 3 * 8 * 8 = 192 is 38, of 16 * 8 * 8 = 1024 it is 205.
    "pruned(0.2, bf16)": {
        "0": packed(192, 38), "3": packed(1024, 205), "7": LEAVES,
        **{layer: {"bfloat16": WHOLE // 2, "bits": WHOLE // 32, "statistics": STATISTICS} for layer in ("2", "5")},
    },
}  # fmt: skip


@pytest.mark.parametrize("level", SPARSE)
def test_what_layers_hold_and_keep_by_kind(level: str) -> None:
    """Every byte of a step has its layer and kind, at each level; the rivals keep what torch keeps."""
    dense, masked, sparse = of(experiment(0.1, activations=level), steps=1)
    for step, wanted in ((dense, DENSE), (masked, DENSE), (sparse, SPARSE[level])):
        kept = {name: cost.kept for name, cost in step.layers.items() if cost.kept}
        assert kept == {**wanted, REST: OF_THE_LOSS}, step.name
        assert step.kept == sum(sum(kinds.values()) for kinds in kept.values())
    weights = 3 * 16 * 9
    parameters = dict.fromkeys(("weights", "optimizer", "gradients"), 4 * (weights + 16))
    assert dense.layers["0"].held == parameters
    assert masked.layers["0"].held == {**parameters, "masks": 4 * weights}
    active = sparse.active["0"][0] - 16
    parameters = dict.fromkeys(("weights", "optimizer", "gradients"), 4 * (active + 16))
    assert sparse.layers["0"].held == {**parameters, "indices": 4 * (17 + 4 + 3 * active)}, "rows, columns, transpose"
    norm = dict.fromkeys(("weights", "optimizer", "gradients"), 2 * 16 * 4)
    assert sparse.layers["1"].held == {**norm, "indices": 2 * 16 * 4 + 8}, "running statistics and their counter"


def test_kinds_of_a_network_without_norms() -> None:
    """NSConv makes the values that its convolution keeps for the gradient to its input: those of the second layer."""
    trial = replace(experiment(activations="dense"), method=FedMef(density=0.1, interval=1, last=5))
    sparse = of(trial, steps=1)[-1]
    active = sparse.active["3"][0] - 2 * 16  # bias and gain
    assert sparse.layers["3"].kept == {"values": 4 * active}
    assert sparse.layers["2"].kept == {"activations": WHOLE}
    assert sparse.kept == sum(sum(cost.kept.values()) for cost in sparse.layers.values())
    assert sparse.layers[REST].kept == OF_THE_LOSS


def test_the_tables_have_every_kind_in_100_columns() -> None:
    """A row for each model and layer; sums of the kinds in the step's table."""
    steps = of(experiment(0.1, activations="pruned(0.2, bf16)"), steps=1)
    written = io.StringIO()
    console = Console(width=100, file=written)
    for table in (bytes_table(steps), time_table(steps), summary_table(steps)):
        console.print(table)
    lines = [line.split() for line in written.getvalue().splitlines()]
    assert "\u2026" not in written.getvalue(), "nothing is cut off"
    heads = "layer model weights indices masks optim. grads activ. bf16 packed bits stats kept"
    assert heads.split() in lines
    rows = [line for line in lines if line[1:2] == ["fedavg"] or line[:1] == ["fedavg"]]
    assert rows[0][-6:] == ["\u2013", "\u2013", "3.2", "\u2013", "\u2013", "3.2"], "3224 bytes packed, no other kind"
    assert any(line[:2] == ["\u2502", "packed"] and line[-5:-3] == ["20.5", "kB"] for line in lines), "3224 + 17240"


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_figures_add_up(density: float) -> None:
    found = of(experiment(density), steps=2)
    assert [step.name for step in found] == (
        ["dense", "masked dense", "fedavg"] if density < 1 else ["dense", "fedavg"]
    )
    for step in found:
        assert step.held == step.weights + step.indices + step.masks + step.optimizer
        assert step.peak == max(moment.peak for moment in step.moments)
        assert step.peak >= step.held + step.kept
        for kind in ("weights", "indices", "masks", "optimizer", "gradients"):
            assert getattr(step, kind) == sum(cost.held.get(kind, 0) for cost in step.layers.values()), kind
        assert step.optimizer == step.weights == step.gradients, "momentum"
        assert step.moments[0].live == step.moments[-1].live == step.held
        assert step.seconds > 0
        assert all(step.layers[name].forward > 0 for name in ("0", "3", "7"))
    if density < 1:
        dense, masked, sparse = found
        weights = 3 * 16 * 9 + 16 * 16 * 9
        assert (dense.masks, masked.masks, sparse.masks) == (0, 4 * weights, 0)
        assert sparse.weights < 0.5 * masked.weights
        assert sparse.held < masked.held


def test_recomputation_keeps_less() -> None:
    kept = of(experiment(0.1), steps=1)[-1].kept
    lossless = of(experiment(0.1, activations="lossless"), steps=1)[-1].kept
    assert lossless < 0.75 * kept
    assert of(experiment(0.1, activations="recompute"), steps=1)[-1].kept < 0.75 * lossless


def test_the_own_step_is_in_the_pieces_of_the_run_and_its_rivals_whole() -> None:
    """Each half keeps half as much; the table of layers is of the first."""
    whole, pieces = of(experiment(), 2), of(experiment(pieces=2), 2)
    for before, after in zip(whole[:-1], pieces[:-1], strict=True):
        assert (before.peak, before.kept) == (after.peak, after.kept)
    assert pieces[-1].peak < 0.8 * whole[-1].peak
    assert 0.45 * whole[-1].kept < pieces[-1].kept < 0.55 * whole[-1].kept
    assert sum(sum(cost.kept.values()) for cost in pieces[-1].layers.values()) == pieces[-1].kept


@pytest.mark.parametrize("level", ["dense", "lossless", "recompute", "bf16"])
def test_watching_changes_no_peak(level: str) -> None:
    """Gradients are overwritten in a watched step too: the curve's highest point is the peak of unwatched steps."""
    sparse = of(experiment(0.1, activations=level), steps=1)[-1]
    assert max(moment.peak for moment in sparse.moments) == sparse.peak


def test_the_curve_passes_through_every_peak() -> None:
    assert outline(MOMENTS) == ([0.0, 1.0, 2.0], [5, 9, 3])


def test_a_file_that_is_no_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for text in ("{", "{}", '{"steps": [{"name": "dense"}]}', '{"steps": [3]}'):
        path.write_text(text)
        with pytest.raises(RecordError, match=r"profile\.json is no profile"):
            read_profile(path)


def test_a_report_draws_the_profile_of_a_run(tmp_path: Path) -> None:
    run = RunRecord(tmp_path, "run", {}, [], {})
    assert memory_of_a_step([run]) is None
    write_profile(tmp_path)
    figure = memory_of_a_step([run])
    assert figure is not None
    assert [panel.get_title() for panel in figure.axes] == ["dense: at most 9 B", "sparse: at most 9 B"]


def test_four_panels_stand_in_two_rows(tmp_path: Path) -> None:
    write_profile(tmp_path)
    steps = read_profile(tmp_path / "profile.json")
    figure = memory_picture([*steps, steps[0], {**steps[0], "name": "an adjustment round", "round": 3}])
    assert [panel.get_subplotspec().rowspan.start for panel in figure.axes] == [0, 0, 1, 1]
    assert [text.get_text() for panel in figure.axes[2:] for text in panel.texts if "3 B" in text.get_text()] == [
        "held between steps 3 B",
        "the model alone 3 B",
    ]


@pytest.mark.parametrize(
    "method",
    [
        FedDST(density=0.2, interval=2, last=5, rate=0.2),
        FedTiny(density=0.2, interval=2, last=5, blocks=1),
        PruneFL(initial_limit=0, interval=2, weight_seconds=1e-6),
    ],
    ids=lambda method: method.name,
)
def test_an_adjustment_round(method: Method) -> None:
    """Round 2 is the first: the client takes more than in an ordinary round, and the curve begins at the model alone."""
    trial = replace(experiment(rounds=6), method=method)
    loop = Loop(trial)
    loop.open()
    before = exchange.parameters(loop.server.model)
    found = adjustment(trial, loop)
    assert found is not None
    assert found.round == 2
    assert found.peaks["client"] >= found.peaks["ordinary client"] > found.held > 0
    assert found.peak == max(found.peaks["client"], found.peaks["server"])
    assert all(seconds > 0 for seconds in found.times.values())
    assert found.moments[0].live == found.held
    assert found.held < max(moment.peak for moment in found.moments) <= found.peak + found.held
    assert 0 < found.marks["growth, report"] < found.marks["server"] <= found.moments[-1].seconds
    assert torch.equal(exchange.parameters(loop.server.model), before)
    assert loop.records == []


def test_a_method_that_never_adjusts_has_no_adjustment() -> None:
    trial = experiment(0.1)
    loop = Loop(trial)
    loop.open()
    assert adjustment(trial, loop) is None


def test_a_gpu_is_asked_for_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here, so torch's functions are replaced: what matters is which are asked, and that work is awaited."""
    asked: list[str] = []
    for name, answer in (("memory_allocated", 7), ("max_memory_allocated", 9), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(str(device)))
    counter = Counter(torch.device("cuda", 0))
    counter.reset()
    assert (counter.live(), counter.peak()) == (7, 9)
    assert counter.now() > 0
    assert asked == ["cuda:0"]
