"""Recorded steps: with a recorder that runs the step again instead of a CUDA graph, clients train to the same bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training
from fedsparse.federated.client import train
from fedsparse.federated.recorded import WARM, RecordedSteps
from fedsparse.federated.worker import Worker, records, resident
from fedsparse.methods import FedAvg, FedSGC
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.nn.walk import Tensors

# Batches of 8: five full ones and 4 samples; three full ones; one that is not full
PARTS = [np.arange(44), np.arange(44, 68), np.arange(68, 72)]


class Recorder:
    """Counts, and instead of a graph keeps the step itself: recording runs nothing, a replay runs it once."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], float | Tensor]) -> tuple[Callable[[], None], Tensor]:
        loss = torch.full((), torch.nan, dtype=torch.float64)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            loss.copy_(torch.as_tensor(run()))

        return replay, loss


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)),
        *(nn.Flatten(), nn.Linear(72, 4)),
    )
    return sparsify(model, 0.4)


def data() -> Dataset:
    images = torch.randn(72, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return Dataset("toy", images, torch.arange(72) % 4, 4, (0.0,), (1.0,))


def run(training: Training, recorder: Recorder | None, mask_changes: bool = False) -> list[dict[str, Any]]:
    """Two rounds of three clients on one model: after each client its weights, loss and iterations."""
    model, found = network(), []
    tensors = Tensors.of(model)
    optimizer = training.make_optimizer(tensors.parameters, 0)
    recorded = None if recorder is None else RecordedSteps(recorder)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for t in range(2):
        if t and mask_changes:
            layer = next(iter(sparse_layers(model).values()))
            layer.set_topology(type(layer.topology).from_mask(layer.topology.mask().flip(0)))
            start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for k, part in enumerate(PARTS):
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(start[name])
            client = Client(k, t, 7, model, data(), part, training, found=tensors, used=optimizer, recorded=recorded)
            train(client, Method())
            optimizer.state.clear()
            after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            found.append(after | {"loss": client.loss, "iteration": client.iteration})
    return found


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            same = torch.equal(ours[name], value) if isinstance(value, Tensor) else ours[name] == value
            assert same, name


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam", "lr": 0.01}, {"proximal": 0.1}, {"momentum": 0.0}])
def test_the_bits_of_steps_that_are_not_recorded(settings: dict[str, Any]) -> None:
    """6 + 3 + 1 batches, 8 of them full, in each of two rounds: 2 run first, and the next are replayed."""
    training = Training(batch_size=8, weight_decay=0.01, **settings)
    recorder = Recorder()
    assert_same(run(training, recorder), run(training, None))
    assert recorder.recorded == 1
    assert recorder.replayed == 2 * 8 - WARM


def test_another_learning_rate_is_recorded_anew() -> None:
    training, recorder = Training(batch_size=8, lr_decay=0.5), Recorder()
    assert_same(run(training, recorder), run(training, None))
    assert recorder.recorded == 2
    assert recorder.replayed == 2 * (8 - WARM)


def test_another_mask_is_recorded_anew() -> None:
    training, recorder = Training(batch_size=8), Recorder()
    assert_same(run(training, recorder, mask_changes=True), run(training, None, mask_changes=True))
    assert recorder.recorded == 2


def test_which_workers_record() -> None:
    def worker(method: Method, **settings: Any) -> Worker:
        return Worker(network(), method, [], data(), PARTS, Training(cuda_graph="auto", **settings), 7)

    assert records(worker(FedAvg()))
    assert not records(worker(FedSGC())), "it changes how a client trains"
    assert not records(worker(FedAvg(), activations="lossless"))
    assert not records(worker(FedAvg(), cohort=2))
    assert worker(FedAvg())._recorded is None, "there is no GPU to replay it"
    with pytest.raises(ValueError, match="cuda_graph is 'on' but must be one of off, auto"):
        Training(cuda_graph="on")  # type: ignore[arg-type]


def test_data_that_take_a_quarter_of_the_free_memory_go_to_the_device() -> None:
    """72 images of 8 x 8 float32 and 72 labels of 8 bytes."""
    it, meta = data(), torch.device("meta")
    assert it.nbytes == 72 * 64 * 4 + 72 * 8
    assert resident(it, meta, 4 * it.nbytes - 1) is it
    assert isinstance(moved := resident(Elsewhere(it), meta, 4 * it.nbytes), Elsewhere)
    assert moved.device == meta


class Elsewhere:
    """Notes where it was sent."""

    def __init__(self, data: Dataset, device: torch.device | None = None) -> None:
        self.nbytes, self.data, self.device = data.nbytes, data, device

    def to(self, device: torch.device) -> "Elsewhere":
        return Elsewhere(self.data, device)
