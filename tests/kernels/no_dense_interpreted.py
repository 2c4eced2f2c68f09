"""A client's round on the Triton back end, interpreted: the largest tensor that is made in it.

The kernels' own blocks are numpy's in the interpreter, as they are registers and shared memory on a GPU.
"""

import json
import sys

import numpy as np
import torch
from torch import nn

from fedsparse import ops
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Training
from fedsparse.federated.loop import Loop
from fedsparse.federated.meter import largest_bytes, reset_largest
from fedsparse.methods import FedTiny
from fedsparse.nn import dense_passes

WIDTH = 32
"""Channels: the convolution's input and output have 8,192 bytes each."""
DENSE = 4 * WIDTH * WIDTH * 9
"""Bytes of its dense weight."""


def largest(backend: str, granularity: int, round: int) -> dict[str, float]:
    """With vectors of so many or single weights, in a round that exchanges weights (1) or not (0)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, WIDTH, 4, stride=4),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * WIDTH, 4),
    )
    data = Dataset("toy", torch.randn(16, 3, 8, 8), torch.arange(16) % 4, 4, (0.0,) * 3, (1.0,) * 3)
    method = FedTiny(density=0.1, interval=1, last=5, blocks=1, granularity=granularity)
    training = Training(rounds=6, clients_per_round=1, batch_size=16, eval_every=6)
    loop = Loop(Experiment(model, method, data, data, [np.arange(16)], training))
    loop.open()
    with dense_passes(False), ops.use_backend(backend):
        reset_largest()
        record = loop.round(round)
        return {"tensor": largest_bytes(), "changed": record["mask_change"]}


if __name__ == "__main__":
    # A tile of the gradient to dense weights is a row of the layer; oneDNN's scratch for it is several times that, and
    # as much again for each thread more.
    torch.set_num_threads(1)
    sys.modules["fedsparse.ops.grow_scores"].TILE = 1 << 9  # type: ignore[attr-defined]
    cases = {"vectors": ("triton", 16, 0), "single weights": ("triton", 1, 1), "dense back end": ("dense", 1, 1)}
    print(json.dumps({name: largest(*case) for name, case in cases.items()}))
