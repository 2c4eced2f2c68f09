"""While a client trains on Triton's kernels, the allocator hands out nothing as large as a dense weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import ops
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Training
from fedsparse.federated.loop import Loop
from fedsparse.methods import FedAvg
from fedsparse.nn import dense_passes

WIDTH = 192
DENSE = 4 * WIDTH * WIDTH * 9
"""Bytes of a dense weight: 1.3 MB; activations have 49 kB."""


def opened(granularity: int) -> Loop:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 4, stride=4), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * WIDTH, 4)).cuda()
    data = Dataset("toy", torch.randn(32, 3, 8, 8), torch.arange(32) % 4, 4, (0.0,) * 3, (1.0,) * 3)
    method = FedAvg(density=0.02, granularity=granularity)
    loop = Loop(Experiment(model, method, data, data, [np.arange(32)], Training(clients_per_round=1, batch_size=16)))
    loop.open()
    return loop


def largest_of_a_round(loop: Loop) -> int:
    """Bytes of the largest block that torch's allocator hands out in a round after the first."""
    loop.round(0)  # cuBLAS and cuDNN take their workspaces once
    torch.cuda.memory._record_memory_history(max_entries=1_000_000, stacks="python")
    try:
        loop.round(1)
        trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return max(entry["size"] for entry in trace if entry["action"] == "alloc")


@pytest.mark.parametrize("granularity", [1, 16])
def test_nothing_is_as_large_as_a_dense_weight(granularity: int) -> None:
    with dense_passes(False), ops.use_backend("triton"):
        assert largest_of_a_round(opened(granularity)) < DENSE // 2


def test_a_dense_weight_would_be_seen() -> None:
    with dense_passes(False), ops.use_backend("dense"):
        assert largest_of_a_round(opened(1)) >= DENSE
