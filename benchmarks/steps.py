"""A whole training step on the CPU: sparse, with and without the blocked region, against dense and masked dense torch.

    python -m benchmarks.steps [--model resnet18] [--density 0.2 0.1 0.05 0.01] [--batch 64] [--threads 1] [--steps 5]

A step is forward, loss, backward and SGD with momentum on images [batch, 3, 32, 32]. Rivals, all float32: "NCHW" and
"channels_last" are torch's dense model in those layouts; "masked" is the dense model whose weights are multiplied by
the mask before the step and its gradients after. Densities are ERK. Logits are compared with those of the masked model
before anything is timed. Time: the median and the least of the steps, thread CPU time with one thread, wall time with
more; the contenders take turns, so that a busy machine is busy for all. Memory: the most bytes of tensors alive during
a step, kernels' scratch included, beyond the model and the optimizer's state, and that state with the model.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsparse import models
from fedsparse.federated.meter import _cpu_meter, model_bytes
from fedsparse.nn import prunable, sparsify, use_region
from fedsparse.ops.load import compiled
from fedsparse.optim import SGD
from fedsparse.pruning import masks_from_scores, score

MIB = 2**20


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
        meter = _cpu_meter()
        meter.fedsparse_meter_reset()
        before = meter.fedsparse_meter_live()
        self.step()
        self.peak = meter.fedsparse_meter_peak() - before
        self.optimizer.zero_grad()

    @property
    def held(self) -> int:
        """Bytes of parameters, buffers and momentum; masks of the masked model as float32."""
        momentum = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return model_bytes(self.model) + momentum + sum(mask.numel() * 4 for mask in self.masks.values())


def contenders(
    dense: nn.Module, density: float | None, images: Tensor, labels: Tensor, distribution: str, granularity: int
) -> list[Contender]:
    """The dense models without a density, else the masked and the sparse ones."""
    if density is None:
        last = {"memory_format": torch.channels_last}
        return [
            Contender("dense NCHW", copy.deepcopy(dense), images, labels),
            Contender("dense channels_last", copy.deepcopy(dense).to(**last), images.to(**last), labels),
        ]
    weights = {name: layer.get_parameter("weight").detach() for name, layer in prunable(dense).items()}
    scores = score.random(weights, torch.Generator().manual_seed(0))
    masks = masks_from_scores(scores, density, distribution, granularity)
    float_masks = {name: mask.float() for name, mask in masks.items()}
    return [
        Contender("masked dense", copy.deepcopy(dense), images, labels, float_masks),
        Contender("sparse", sparsify(copy.deepcopy(dense), masks=masks), images, labels),
        Contender("sparse, region", sparsify(copy.deepcopy(dense), masks=masks), images, labels, region=True),
    ]


def check(group: list[Contender]) -> None:
    """AssertionError where the first steps' logits differ."""
    logits = [c.step() for c in group]
    for other, c in zip(logits[1:], group[1:]):
        error = float((other - logits[0]).abs().max() / logits[0].abs().max())
        assert error < 1e-3, f"{c.name} is wrong: relative error {error:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["resnet18", "resnet20", "vgg11", "cnn"], default="resnet18")
    parser.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.01])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--distribution", choices=["uniform", "erk"], default="uniform")
    parser.add_argument("--granularity", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))
    dense = models.build(args.model, 10)
    how = (images, labels, args.distribution, args.granularity)
    rivals = contenders(dense, None, *how)
    groups = {None: rivals, **{d: contenders(dense, d, *how) for d in args.density}}
    everybody = [c for group in groups.values() for c in group]
    for group in groups.values():
        check(group)
    for c in everybody:
        c.measure_memory()
    for _ in range(args.steps):
        for c in everybody:
            c.timed()
    best = min(min(c.times) for c in rivals)
    median = min(statistics.median(c.times) for c in rivals)
    isa = compiled()["instruction_set_chosen"]
    print(f"{args.model}, batch {args.batch}, {args.threads} thread(s), {isa}: one training step")
    print(
        "density  who                    median ms   least ms   times best dense (median, least)   step MiB  held MiB"
    )
    for density, group in groups.items():
        for c in group:
            middle, least = statistics.median(c.times), min(c.times)
            share = "" if density is None else f"{density:.0%}"
            print(
                f"{share:>7}  {c.name:20} {middle * 1e3:11.1f} {least * 1e3:10.1f} {median / middle:16.2f}"
                f" {best / least:10.2f} {c.peak / MIB:14.1f} {c.held / MIB:9.1f}"
            )


if __name__ == "__main__":
    main()
