"""What a training step takes in memory on the CPU: this package at each level of its store, against dense torch.

    python -m benchmarks.memory [--model resnet18] [--density 0.05] [--batch 64] [--steps 3]
        [--bytes [WHO ...] | --times [WHO ...]] [--csv FILE]

A step is the engine's own (`federated.client.iterate`): forward, loss, backward, SGD with momentum, on images [batch,
3, 32, 32]; uniform random masks. Rivals: "masked dense" (weights and gradients multiplied by float32 masks, as masks
are commonly simulated), "dense", "dense, blocks checkpointed" (torch.utils.checkpoint around each residual block, or
around each module of the outermost sequence that holds a convolution), "dense, bf16 autocast". "NSConv" is FedMef's
network, whose convolutions standardise their weight and have no batch norm after them: with it a minibatch may go
through in pieces, as `train.memory_limit` chooses them, to the same gradients.

Bytes, each contender in a process of its own: "held" between steps (model, masks, momentum) and "peak" (the most
during a step, `held` included), both by the counter in torch's CPU allocator; "resident" is `held` and what
the process grows by in a step beyond its size between steps, by the kernel, with MALLOC_MMAP_THRESHOLD_=300000: it has
what libraries allocate without torch too, as oneDNN's scratch. Without that setting the C library keeps freed blocks,
several times what is alive. Times: medians of thread CPU
time, the contenders taking turns.
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.results import Row, header, write_csv
from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training
from fedsparse.federated.client import iterate
from fedsparse.federated.meter import live_bytes, peak_bytes, reset_peak
from fedsparse.federated.plan import LEVELS
from fedsparse.nn import prunable, sparsify, standardise
from fedsparse.pruning import masks_from_scores, score
from fedsparse.report.profile import MaskedDense

MIB = 2**20
Batch = tuple[Tensor, Tensor]


class Checkpointed(nn.Module):
    """A module that keeps its input alone, and computes the rest again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        """As the module's."""
        return checkpoint(self.inner, x, use_reentrant=False)


@dataclass(frozen=True)
class Contender:
    """How a model is built from the dense one and its masks, and trains."""

    name: str
    build: Callable[[nn.Module, dict[str, Tensor]], nn.Module]
    level: str = "dense"
    pieces: int = 1
    masked: bool = False
    autocast: bool = False

    def stepping(self, dense: nn.Module, masks: dict[str, Tensor], batch: Batch) -> Callable[[], None]:
        """What makes a training step on the batch."""
        model, size = self.build(dense, masks).train(), len(batch[1])
        method = MaskedDense({f"{k}.weight": mask.float() for k, mask in masks.items()}) if self.masked else Method()
        images, labels = batch
        data = Dataset("random", images, labels, 10, (0.0,) * 3, (1.0,) * 3)
        training = Training(batch_size=size, lr=1e-3, activations=self.level, pieces=self.pieces)
        client = Client(0, 0, 0, model, data, np.arange(size), training)
        method.begin(client)

        def step() -> None:
            with client.contexts, torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                client.keep_activations(method)
                iterate(client, method, *batch)
            client.optimizer.zero_grad(set_to_none=True)

        return step


def dense_copy(dense: nn.Module, _: dict[str, Tensor]) -> nn.Module:
    """The dense model."""
    return copy.deepcopy(dense)


def checkpointed(dense: nn.Module, _: dict[str, Tensor]) -> nn.Module:
    """The dense model, each part that has a convolution checkpointed."""
    model = copy.deepcopy(dense)
    for name, module in model.named_children():
        if any(isinstance(inner, nn.Conv2d) for inner in module.modules()):
            setattr(model, name, Checkpointed(module))
    return model


def sparse(dense: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The sparse model."""
    return sparsify(copy.deepcopy(dense), masks=masks)


def nsconv(dense: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The sparse model with NSConv, as FedMef has it."""
    return sparsify(standardise(copy.deepcopy(dense)), masks=masks)


PRUNED = "pruned(0.2, bf16)"
OURS = (
    *(Contender(f"sparse, {level}", sparse, level) for level in (*LEVELS, "bf16")),
    Contender("sparse NSConv, dense", nsconv),
    Contender("sparse NSConv, pruned", nsconv, PRUNED),
    Contender("sparse NSConv, pruned, 2 pieces", nsconv, PRUNED, pieces=2),
    Contender("sparse NSConv, pruned, 4 pieces", nsconv, PRUNED, pieces=4),
)
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("masked dense", dense_copy, masked=True),
        Contender("dense", dense_copy),
        Contender("dense, blocks checkpointed", checkpointed),
        Contender("dense, bf16 autocast", dense_copy, autocast=True),
        *OURS,
    )
}


def task(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Tensor], Batch]:
    """The dense model, the masks and the batch that all contenders have."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch = torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))
    dense = models.build(args.model, 10)
    weights = {name: layer.get_parameter("weight").detach() for name, layer in prunable(dense).items()}
    scores = score.random(weights, torch.Generator().manual_seed(0))
    return dense, masks_from_scores(scores, args.density, "uniform"), batch


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes, as the kernel says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def trim() -> None:
    """Give back to the system what is no longer used."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def bytes_of(contender: Contender, args: argparse.Namespace) -> dict[str, int]:
    """Bytes held between steps, at the peak of a step, and resident; of this process, which does nothing else."""
    live_bytes()
    dense, masks, batch = task(args)
    if contender.name.startswith("dense"):
        masks = {}
    gc.collect()
    before = live_bytes()
    step = contender.stepping(dense, masks, batch)
    step()
    step()
    trim()
    held, between = live_bytes() - before, resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    reset_peak()
    step()
    return {"held": held, "peak": peak_bytes() - before, "resident": held + resident("VmHWM") - between}


def in_a_process(name: str, arguments: list[str]) -> dict[str, int]:
    """`bytes_of` a contender, measured by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments, "--only", name]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "300000"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    print(name, found, file=sys.stderr, flush=True)
    return found


def times_of(names: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a step: medians, the contenders taking turns."""
    dense, masks, batch = task(args)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    steps = {name: CONTENDERS[name].stepping(dense, masks, batch) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.steps + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                found[name].append(clock() - start)
    return {name: 1e3 * statistics.median(times) for name, times in found.items()}


def rows_of(sizes: dict[str, dict[str, int]], times: dict[str, float]) -> list[Row]:
    """A row for each contender, with ratios of the peak to masked dense and of the time to our fastest level."""
    ours = [times[c.name] for c in OURS if c.name in times]
    rows = []
    for name in CONTENDERS:
        row: Row = {"who": name}
        if name in sizes:
            row |= {f"{kind}_MiB": size / MIB for kind, size in sizes[name].items()}
            if "masked dense" in sizes:
                row["peak_over_masked_dense"] = sizes[name]["peak"] / sizes["masked dense"]["peak"]
        if name in times:
            row["step_ms"] = times[name]
            if ours:
                row["time_over_fastest_level"] = times[name] / min(ours)
        rows.append(row)
    return rows


def text(row: Row) -> str:
    """A line of the table."""
    columns = ("held_MiB", "peak_MiB", "peak_over_masked_dense", "resident_MiB", "step_ms", "time_over_fastest_level")
    cells = [f"{float(row[column]):10.2f}" if column in row else f"{'-':>10}" for column in columns]
    return f"{row['who']:33}{''.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["resnet18", "resnet20", "vgg11", "cnn"], default="resnet18")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bytes", nargs="*", choices=list(CONTENDERS), help="bytes alone, of these contenders or all")
    parser.add_argument("--times", nargs="*", choices=list(CONTENDERS), help="times alone, of these contenders or all")
    parser.add_argument("--only", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(bytes_of(CONTENDERS[args.only], args)))
        return
    same = ["--model", args.model, "--density", str(args.density), "--batch", str(args.batch)]
    sizes = {} if args.times is not None else {name: in_a_process(name, same) for name in args.bytes or CONTENDERS}
    times = {} if args.bytes is not None else times_of(args.times or list(CONTENDERS), args)
    rows = rows_of(sizes, times)
    print(header(f"memory of one training step of {args.model}, batch {args.batch}, density {args.density:.0%}"))
    print(f"{'MiB; ms':33}      held      peak     ratio  resident      step     ratio")
    for row in rows:
        print(text(row))
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
