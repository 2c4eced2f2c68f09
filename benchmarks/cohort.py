"""Clients trained at once against one after the other, on the CPU: `python -m benchmarks.cohort`.

Prints client steps a second for models of small images, dense and at 10 % density, for 1, 4, 10 and 16 clients. Every
client takes the same number of SGD steps on batches of the same size; both ways start from the same weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from fedsparse.federated import Training
from fedsparse.federated.loss import cross_entropy
from fedsparse.models import build
from fedsparse.nn import Cohort, sparsify

CLASSES, SIDE = 10, 8
TRAINING = Training(lr=0.01, momentum=0.9)


def network(name: str, density: float) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, CLASSES, channels=1, image_size=SIDE)
    return model if density == 1 else sparsify(model, density)


def batches(clients: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(clients, size, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (clients, size), generator=generator)
    return list(zip(images, labels, strict=True))


def in_turn(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """One step of each client, each with its own model and optimizer."""
    models = [copy.deepcopy(model) for _ in data]
    optimizers = [TRAINING.make_optimizer(list(each.parameters()), 0) for each in models]

    def step() -> None:
        for each, optimizer, (x, y) in zip(models, optimizers, data, strict=True):
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(each(x), y).backward()
            optimizer.step()

    return step


def together(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    cohort = Cohort(copy.deepcopy(model), len(data), lambda them: TRAINING.make_optimizer(them, 0), cross_entropy)
    return lambda: cohort.step(data)


def seconds(step: Callable[[], None], budget: float) -> float:
    """Least time of a step within the budget, after a warm-up."""
    step()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohort", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn", "resnet20"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each figure")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"client steps a second, batch {args.batch}, {args.threads} thread(s), torch {torch.__version__}")
    print(f"{'model':<10}{'density':>9}{'clients':>9}{'in turn':>11}{'together':>11}{'x':>7}")
    for name in args.models:
        for density in (1.0, 0.1):
            model = network(name, density)
            for clients in (1, 4, 10, 16):
                data = batches(clients, args.batch)
                alone = clients / seconds(in_turn(model, data), args.seconds)
                at_once = clients / seconds(together(model, data), args.seconds)
                print(
                    f"{name:<10}{density:>9.0%}{clients:>9}{alone:>11.0f}{at_once:>11.0f}{at_once / alone:>7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
