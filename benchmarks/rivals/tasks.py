"""What every engine runs: data and models of the three tasks, and how a round is timed. Plain torch only."""

import functools
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Task:
    """`clients` of `samples` random images each, `per_round` of them a round, one local epoch of SGD in `batch`es."""

    model: str
    clients: int
    samples: int
    per_round: int
    batch: int
    shape: tuple[int, int, int]
    rounds: int
    classes: int = 10
    lr: float = 0.05


TASKS = {
    "linear": Task("linear", 1000, 10, 50, 10, (1, 28, 28), 30),
    "cnn": Task("cnn", 1000, 50, 50, 10, (1, 28, 28), 6),
    "resnet20": Task("resnet20", 100, 500, 10, 32, (3, 32, 32), 2),
}
# Less for a machine that is slow or shared.
WARM_UP = int(os.environ.get("ENGINE_WARM_UP", "1"))
if "ENGINE_ROUNDS" in os.environ:
    TASKS = {name: replace(task, rounds=int(os.environ["ENGINE_ROUNDS"])) for name, task in TASKS.items()}


@functools.cache
def images(task: Task) -> tuple[Tensor, Tensor]:
    """All clients' images, float32, one client after the other, and their classes; made once a process."""
    generator = torch.Generator().manual_seed(0)
    count = task.clients * task.samples
    labels = torch.randint(task.classes, (count,), generator=generator)
    return torch.randn(count, *task.shape, generator=generator), labels


def build(task: Task) -> nn.Module:
    """The task's model, freshly initialised."""
    torch.manual_seed(0)
    channels, height, width = task.shape
    if task.model == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, task.classes))
    if task.model == "cnn":
        layers = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * height * width // 16, task.classes))
    return resnet20(channels, task.classes)


def resnet20(channels: int, classes: int) -> nn.Module:
    """He et al., CVPR 2016, section 4.2, n = 3."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for width in (16, 32, 64):
        for block in range(3):
            layers.append(Block(before, width, 2 if block == 0 and width > 16 else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class Block(nn.Module):
    """Two 3x3 convolutions and an identity that is subsampled and padded with zero channels where the width grows."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.grown = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """float32 [b, before, h, w] to [b, width, h / stride, w / stride]."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.grown:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        return functional.relu(x + y)


class Clock:
    """Wall and CPU seconds of each round, descendants' CPU included where `tree` says so."""

    def __init__(self, tree: bool = False) -> None:
        self.tree = tree
        self.marks = [self._now()]

    def mark(self) -> None:
        """A round has ended."""
        self.marks.append(self._now())

    def rounds(self) -> list[tuple[float, float]]:
        """(wall, CPU) of each round after the warm-up."""
        pairs = list(zip(self.marks, self.marks[1:]))[WARM_UP:]
        return [(b[0] - a[0], b[1] - a[1]) for a, b in pairs]

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), tree_seconds() if self.tree else time.process_time()


def tree_seconds() -> float:
    """CPU seconds so far of this process and of all that descend from it and are alive (Linux)."""
    return sum(tree(os.getpid()).values())


def tree(root: int) -> dict[int, float]:
    """The process `root` and all that descend from it and are alive, each with its CPU seconds so far (Linux)."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return {pid: seconds[pid] for pid in found if pid in seconds}
