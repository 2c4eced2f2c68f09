"""The profile of a step: sizes by hand on a net of two layers, and what must add up on any."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from invented_runs import MOMENTS, write_profile
from torch import nn

from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Training, exchange
from fedsparse.federated.client import Client, iterate
from fedsparse.federated.meter import Counter
from fedsparse.federated.method import Method
from fedsparse.methods import FedAvg, FedDST, FedTiny, PruneFL
from fedsparse.report.adjustment import adjustment
from fedsparse.report.memory_plot import memory_of_a_step, memory_picture, outline, read_profile
from fedsparse.report.profile import StepProfile, profiles
from fedsparse.report.records import RecordError, RunRecord
from fedsparse.report.step_recorder import REST, StepRecorder


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
    """Batch 16, 4 -> 8 -> 2, no biases. The first product leaves its output, 16 * 8 floats. ReLU keeps its own output,
    and the first product's is freed behind it, so that the next layer is charged 16 * 2 - 16 * 8 floats: the logits come
    and that output goes. The loss keeps its log-probabilities, 16 * 2, and itself, a float; the flattened input is the
    batch. Beside the loss's one float more: the total weight that the mean divides by.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    client = Client(0, 0, 0, net, data(), np.arange(16), Training(batch_size=16))
    x, y = client.data.batch(client.index)
    for _ in range(2):  # torch's own buffers are there from the first step on
        net.zero_grad()
        recorder = StepRecorder(Method(), Counter(torch.device("cpu")))
        with recorder.watching(net):
            iterate(client, recorder, x, y)  # type: ignore[arg-type]
    kept = {name: cost.kept for name, cost in recorder.layers.items()}
    assert kept == {"0": 0, "1": 512, "2": 512, "3": 128 - 512, REST: 128 + 4 + 4}
    assert recorder.kept == sum(kept.values())
    assert recorder.gradients == 4 * (4 * 8 + 8 * 2)
    for layer in ("1", "2", "3", REST):
        assert recorder.layers[layer].backward > 0, layer
    assert recorder.layers["1"].forward > 0
    assert 0 < recorder.marks["backward"] < recorder.marks["optimizer"]


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
        assert step.kept == sum(cost.kept for cost in step.layers.values())
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
