"""The engine's recorded steps on the device: the weights of launched steps, and nothing waits for the device."""

import copy

import numpy as np
import pytest
import torch
from sparse_problems import error

from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training
from fedsparse.federated.client import train
from fedsparse.federated.recorded import RecordedSteps
from fedsparse.models import build
from fedsparse.nn import sparsify


def dataset(count: int) -> Dataset:
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Dataset("random", images, torch.arange(count) % 10, 10, (0.5,) * 3, (0.25,) * 3).to("cuda")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_clients_after_each_other(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second client replays what the first recorded; its optimizer starts at zero."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.manual_seed(0)
    model = sparsify(build("resnet20", 10), 0.3).cuda()
    data, training = dataset(150), Training(batch_size=16, lr=0.01, optimizer=optimizer, augment=True)
    plain, steps = copy.deepcopy(model), RecordedSteps()
    start = copy.deepcopy(model.state_dict())
    for k, part in enumerate((np.arange(72), np.arange(72, 150))):
        for net, recorded in ((model, steps), (plain, None)):
            net.load_state_dict(start)
            train(Client(k, 0, 7, net, data, part, training, recorded=recorded), Method())
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        before = start[name]
        assert error((ours - before).detach(), (theirs - before).detach().double().cpu()) <= 1e-2, name


def test_a_replayed_step_makes_nobody_wait() -> None:
    torch.manual_seed(0)
    model = sparsify(build("resnet20", 10), 0.3).cuda()
    training = Training(batch_size=16, augment=True)
    client = Client(0, 0, 7, model, dataset(96), np.arange(96), training, recorded=RecordedSteps())
    client.tensors.train()
    assert client.recorded is not None
    client.recorded.begin(client)
    batches = client.batches("epoch 0", augment=True)
    for _ in range(4):
        client.recorded.step(client, Method(), *next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = client.recorded.step(client, Method(), *next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(float(loss))
