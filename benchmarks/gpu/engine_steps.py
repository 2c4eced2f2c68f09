"""Clients' steps a second as a run takes them: the engine's own loop, launched and with recorded steps."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch

from fedsparse.nn import sparsify

from .bench import Bench, checked, relative_error
from .rows import Case, Measured, NotMeasurableError
from .training import CLASSES, apply_masks, network, random_masks

BATCH, BATCHES = 64, 8
_LIMIT = 1e-2  # of the change of the weights in a client's training: the order of cuDNN's sums may differ


def cases() -> list[Case]:
    """One client's local training of 8 minibatches, augmentation and data on the device."""
    launched = f"engine, {BATCHES} steps of b{BATCH}, density 5%, launched"
    return [
        Case(launched, partial(local_training, recorded=False), seconds=5.0),
        Case(
            f"engine, {BATCHES} steps of b{BATCH}, density 5%, recorded",
            partial(local_training, recorded=True),
            versus=launched,
            seconds=8.0,
        ),
    ]


def local_training(bench: Bench, recorded: bool) -> Measured:
    """Milliseconds of one client's training; the weights after it are compared with those of launched steps."""
    if recorded:
        bench.need_cuda("a CUDA graph")
    try:
        from fedsparse.data import Dataset
        from fedsparse.federated import Client, Method, Training
        from fedsparse.federated.client import train
        from fedsparse.federated.recorded import RecordedSteps
    except ImportError as missing:
        raise NotMeasurableError(f"the engine needs a package that is not here: {missing}") from missing
    model = network(bench)
    masks = random_masks(model, 0.2 if bench.smoke else 0.05)
    apply_masks(model, masks).to(bench.device)
    layers = {name.removesuffix(".weight"): mask.to(bench.device) for name, mask in masks.items()}
    model = sparsify(model, masks=layers)
    size = bench.size(BATCH, 8)
    count, side = size * bench.size(BATCHES, 2), bench.size(32, 16)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    data = Dataset("random", images, torch.arange(count) % CLASSES, CLASSES, (0.5,) * 3, (0.25,) * 3).to(bench.device)
    training = Training(batch_size=size, lr=0.01, augment=True)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    plain = copy.deepcopy(model)
    all_samples = np.arange(count)
    train(Client(0, 0, 7, plain, data, all_samples, training), Method())
    client = Client(0, 0, 7, model, data, all_samples, training, recorded=RecordedSteps() if recorded else None)

    def run() -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), start)
        client.optimizer.restart(training.lr)
        train(client, Method())

    run()
    run()
    error = checked(relative_error(_change(model, start), _change(plain, start)), _LIMIT, "the change of the weights")
    peak = bench.peak(run)
    timing = bench.time(run, seconds=1.0)
    return Measured({"local training": timing}, error, peak, 1e3 * (count // size) / timing.median, "steps/s")


def _change(model: torch.nn.Module, start: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(p.detach() - s).flatten().double() for p, s in zip(model.parameters(), start, strict=True)])
