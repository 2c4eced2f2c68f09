"""A whole training step on the CPU: sparse, single weights and strips of 16, against dense and masked dense torch.

    python -m benchmarks.steps [--model resnet18] [--density 0.2 0.1 0.05 0.01] [--distribution uniform | erk]
        [--batch 64] [--threads 1] [--steps 5] [--vectors 16] [--only sparse "sparse V16" ...] [--csv FILE]

A step is forward, loss, backward and SGD with momentum on images [batch, 3, 32, 32]. Rivals, all float32: "dense NCHW"
and "dense channels_last" are torch's dense model in those layouts; "masked dense" is the dense model whose weights are
multiplied by the mask before the step and its gradients after. "sparse" has single weights, "sparse V16" masks in
which 16 output channels share their columns (`--vectors`); "sparse, NCHW" leaves the blocked region at every layer;
the others keep less for the backward pass (`fedsparse.nn.Level`), and those with NSConv in the place of batch norm
(FedMef) are another model. Layer densities are uniform, or ERK. Logits are compared with those of the masked model
before anything is timed. Time: the median of the steps, thread CPU time with one thread, wall time with more; the
contenders take turns, so that a busy machine is busy for all. Memory: the most bytes of tensors alive during a step,
kernels' scratch included, beyond the model and the optimizer's state ("step"), and that state with the model ("held").
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.results import Row, header, write_csv
from fedsparse import models
from fedsparse.federated.meter import live_bytes, model_bytes, peak_bytes, reset_peak
from fedsparse.nn import keep_activations, prunable, sparsify, standardise, use_region
from fedsparse.optim import SGD
from fedsparse.pruning import masks_from_scores, score

MIB = 2**20
GAIN = 1.7139  # NSConv's, which keeps the variance through ReLUs
GOALS = {0.5: 1.1, 0.2: 2.5, 0.1: 4.0, 0.05: 6.0, 0.02: 8.0, 0.01: 10.0}
Batch = tuple[Tensor, Tensor]


@dataclass
class Contender:
    """A model that trains; `around` wraps a step."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)
    region: bool = False
    times: list[float] = field(default_factory=list)
    peak: int = 0

    def __post_init__(self) -> None:
        self.optimizer = SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def step(self) -> Tensor:
        """One training step; the logits."""
        self.optimizer.zero_grad()
        weights = [(self.model.get_submodule(name).weight, mask) for name, mask in self.masks.items()]
        with torch.no_grad():
            for weight, mask in weights:
                weight.mul_(mask)
        with use_region(self.region):
            logits = self.model(self.images)
            F.cross_entropy(logits, self.labels).backward()
        for weight, mask in weights:
            weight.grad.mul_(mask)
        self.optimizer.step()
        return logits.detach()

    def timed(self) -> None:
        """Run a step, note its time."""
        clock: Callable[[], float] = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        self.step()
        self.times.append(clock() - start)

    def measure_memory(self) -> None:
        """Run a step, note the most bytes that were alive."""
        self.optimizer.zero_grad()
        reset_peak()
        before = live_bytes()
        self.step()
        self.peak = peak_bytes() - before
        self.optimizer.zero_grad()

    @property
    def held(self) -> int:
        """Bytes of parameters, buffers and momentum; masks of the masked model as float32."""
        momentum = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return model_bytes(self.model) + momentum + sum(mask.numel() * 4 for mask in self.masks.values())


def contenders(
    dense: nn.Module, density: float | None, distribution: str, batch: Batch, vectors: list[int]
) -> list[list[Contender]]:
    """Groups that compute the same: the dense models without a density, else those of each granularity."""
    images, labels = batch
    if density is None:
        last = {"memory_format": torch.channels_last}
        return [
            [
                Contender("dense NCHW", copy.deepcopy(dense), images, labels),
                Contender("dense channels_last", copy.deepcopy(dense).to(**last), images.to(**last), labels),
            ]
        ]
    weights = {name: layer.get_parameter("weight").detach() for name, layer in prunable(dense).items()}
    scores = score.random(weights, torch.Generator().manual_seed(0))
    single, *strips = (masks_from_scores(scores, density, distribution, v) for v in (1, *vectors))

    def masked(masks: dict[str, Tensor]) -> Contender:
        floats = {name: mask.float() for name, mask in masks.items()}
        return Contender("masked dense", copy.deepcopy(dense), images, labels, floats)

    def sparse(
        name: str, masks: dict[str, Tensor], granularity: int = 1, level: str = "dense", region: bool = True
    ) -> Contender:
        model = sparsify(copy.deepcopy(dense), masks=masks, granularity=granularity)
        return Contender(name, keep_activations(model, level), images, labels, region=region)

    def pruned(level: str) -> Contender:
        model = sparsify(standardise(copy.deepcopy(dense), GAIN), masks=single)
        return Contender(f"NSConv, {level}", keep_activations(model, level), images, labels, region=True)

    return [
        [
            masked(single),
            sparse("sparse, NCHW", single, region=False),
            sparse("sparse", single),
            *(sparse(f"sparse, {level}", single, level=level) for level in ("lossless", "bf16", "recompute")),
        ],
        [pruned(level) for level in ("dense", "pruned(0.2, bf16)")],
        *([masked(masks), sparse(f"sparse V{v}", masks, v)] for v, masks in zip(vectors, strips)),
    ]


def wanted(groups: list[list[Contender]], only: list[str]) -> list[list[Contender]]:
    """The groups without those that `only` does not name; the first of a group stays where one that it checks does."""
    if not only:
        return groups
    left = [[group[0], *(c for c in group[1:] if c.name in only)] for group in groups]
    return [group for group in left if len(group) > 1 or group[0].name in only]


def check(group: list[Contender]) -> None:
    """AssertionError where the first steps' logits differ."""
    logits = [c.step() for c in group]
    for other, c in zip(logits[1:], group[1:]):
        error = float((other - logits[0]).abs().max() / logits[0].abs().max())
        assert error < 1e-3, f"{c.name} is wrong: relative error {error:.1e}"


def measure(
    dense: nn.Module,
    densities: list[float],
    distribution: str,
    batch: Batch,
    steps: int,
    vectors: list[int],
    only: list[str],
) -> list[Row]:
    """A row for each contender."""
    by_density: dict[float | None, list[Contender]] = {}
    for density in (None, *densities):
        groups = contenders(dense, density, distribution, batch, vectors)
        if density is not None:
            groups = wanted(groups, only)
        for group in groups:
            check(group)
        told = [c for number, group in enumerate(groups) for c in group if not number or not c.masks]
        by_density[density] = [c for c in told if density is None or not only or c.name in only]
    everybody = [c for group in by_density.values() for c in group]
    for c in everybody:
        c.measure_memory()
    for _ in range(steps):
        for c in everybody:
            c.timed()
    best = min(statistics.median(c.times) for c in by_density[None])
    return [
        {
            "density": density,
            "who": c.name,
            "step_ms": statistics.median(c.times) * 1e3,
            "over_best_dense": best / statistics.median(c.times),
            "step_MiB": c.peak / MIB,
            "held_MiB": c.held / MIB,
        }
        for density, group in by_density.items()
        for c in group
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["resnet18", "resnet20", "vgg11", "cnn"], default="resnet18")
    parser.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.01])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--distribution", choices=["uniform", "erk"], default="uniform")
    parser.add_argument("--vectors", type=int, nargs="*", default=[16], help="V: output channels that share columns")
    parser.add_argument("--only", nargs="+", default=[], metavar="WHO", help="measure these beside dense torch")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch = torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))
    model = models.build(args.model, 10)
    rows = measure(model, args.density, args.distribution, batch, args.steps, args.vectors, args.only)
    print(header(f"one training step of {args.model}, batch {args.batch}, {args.distribution} densities"))
    print(f"density  {'who':30}   step ms  ratio (goal)  step MiB  held MiB")
    for row in rows:
        share = "" if row["density"] is None else f"{row['density']:.0%}"
        stands = args.model == "resnet18" and args.distribution == "uniform" and row["who"] == "sparse"
        goal = f"({GOALS[row['density']]:g})" if stands and row["density"] in GOALS else ""
        print(
            f"{share:>7}  {row['who']:30} {row['step_ms']:9.1f} {row['over_best_dense']:6.2f} {goal:7}"
            f" {row['step_MiB']:8.1f} {row['held_MiB']:9.1f}"
        )
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
