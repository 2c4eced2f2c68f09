"""What one adjustment of the mask costs on the CPU, against a training step of the same model.

    python -m benchmarks.adjustment [--model resnet18] [--density 0.1 0.05 0.01] [--batch 64] [--threads 1]
                                    [--memory fast compact] [--vectors 1 16]

Every layer drops its 10 % of lowest |w| and grows as many of the largest gradients. "growth" is a step that looks for
them less an ordinary step: the gradient of every inactive weight, which costs what dense torch's does. "selection"
makes the new topologies; "move" changes the masks, with values and momentum; "change" is the two together. "weights MB"
are the live tensors after a step, but the images: weights, gradients, momentum and indices (and norms and the last
layer, 0.2 MB of ResNet-18). Medians; thread CPU time with one thread, wall time with more.
"""

import argparse
import copy
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.results import Row, header, write_csv
from fedsparse import models
from fedsparse.federated.meter import live_bytes
from fedsparse.nn import collect_growth, sparse_layers, sparsify
from fedsparse.optim import SGD
from fedsparse.pruning import prune_and_grow
from fedsparse.topology import MEMORIES

SHARE = 0.1


def milliseconds(call: Callable[[], object], runs: int) -> float:
    """Median of some calls."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(runs):
        start = clock()
        call()
        times.append((clock() - start) * 1e3)
    return statistics.median(times)


def measure(dense: torch.nn.Module, kept: dict[str, Any], images: torch.Tensor, labels: torch.Tensor, runs: int) -> Row:
    """The parts of one adjustment; kept: density, granularity and memory of `sparsify`."""
    density = kept.pop("density")
    gc.collect()
    live = live_bytes()
    model = sparsify(copy.deepcopy(dense), density, **kept)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    layers = sparse_layers(model)
    counts = {name: max(1, round(SHARE * len(layer.topology.cols))) for name, layer in layers.items()}

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    found = {}

    def growing_step() -> None:
        with collect_growth(layers, counts) as growth:
            step()
        found.update(growth)

    def select() -> dict:
        return {
            name: prune_and_grow(layer.topology, layer.values.detach(), found[name].groups)
            for name, layer in layers.items()
        }

    def change(new: dict) -> None:
        for name, topology in new.items():
            optimizer.follow(layers[name].values, layers[name].set_topology(topology))

    step()
    gc.collect()
    weights = live_bytes() - live
    growing_step()
    # One after the other, since the machine's speed changes from one second to the next.
    pairs = [(milliseconds(step, 1), milliseconds(growing_step, 1)) for _ in range(runs)]
    ordinary, growing = (statistics.median(times) for times in zip(*pairs))
    selection = milliseconds(select, runs)
    moves = []
    for _ in range(runs):
        growing_step()
        new = select()
        moves.append(milliseconds(lambda new=new: change(new), 1))
    move = statistics.median(moves)
    return {
        "density": density,
        **kept,
        "weights_mb": weights / 1e6,
        "step_ms": ordinary,
        "growth_ms": growing - ordinary,
        "selection_ms": selection,
        "move_ms": move,
        "change_over_step": (selection + move) / ordinary,
        "adjustment_over_step": (max(growing - ordinary, 0.0) + selection + move) / ordinary,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--memory", nargs="+", choices=MEMORIES, default=["fast", "compact"])
    parser.add_argument("--vectors", type=int, nargs="+", default=[1], metavar="V")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))
    dense = models.build(args.model, 10)
    print(header(f"adjustment of {args.model}, batch {args.batch}"))
    print("density   V  memory   weights MB    step ms  growth ms  selection ms    move ms  change / step  all / step")
    rows = []
    for density, vectors, memory in itertools.product(args.density, args.vectors, args.memory):
        row = measure(dense, {"density": density, "granularity": vectors, "memory": memory}, images, labels, args.runs)
        rows.append(row)
        print(
            f"{density:7.0%} {vectors:3} {memory:>8} {row['weights_mb']:11.2f} {row['step_ms']:10.1f}"
            f" {row['growth_ms']:10.1f} {row['selection_ms']:13.1f}"
            f" {row['move_ms']:10.1f} {row['change_over_step']:14.2f} {row['adjustment_over_step']:11.2f}",
            flush=True,
        )
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
