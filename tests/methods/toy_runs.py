"""A small run of any method: three clients with 40 samples of noise each, all of them in every round."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Method, Training

CLIENTS = 3


class Flat(nn.Module):
    """Convolutions, plain and grouped, and linear layers, with norms of a given kind; divisible by V = 4."""

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 8, 3, padding=1, bias=False), self.of(norm, 8)
        self.grouped, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), self.of(norm, 8)
        self.conv2, self.norm3 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), self.of(norm, 16)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    @staticmethod
    def of(norm: str, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(4, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.grouped(x)).relu()
        x = self.norm3(self.conv2(x)).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


def toy_loop(method: Method, norm: str = "batch", rounds: int = 6, **training: object) -> Loop:
    """An opened loop."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40 * CLIENTS, 2, 6, 6), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 4
    data = Dataset("toy", images, labels, 4, (0.5, 0.5), (0.3, 0.3))
    parts = np.split(np.arange(len(images)), CLIENTS)
    settings = {"rounds": rounds, "clients_per_round": CLIENTS, "epochs": 2, "batch_size": 20, "lr": 0.02} | training
    loop = Loop(Experiment(Flat(norm), method, data, data, parts, Training(**settings)))  # type: ignore[arg-type]
    loop.open()
    return loop
