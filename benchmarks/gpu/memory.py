"""Peak memory of a ResNet-18 training step: this package at each level of its store, against dense torch.

The CPU's table is `benchmarks/memory.py`; here the bytes are torch's `max_memory_allocated`, all that is alive during a
step included: weights, masks, momentum, the batch. Between Triton convolutions "recompute" does what it does on the
CPU, and norms keep their inputs as bfloat16 at "bf16"; elsewhere on a GPU both are what "lossless" is: outputs of ReLU
packed, norms keep their inputs. Beside them are torch's checkpoints around our blocks.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedsparse import ops
from fedsparse.nn import keep_activations, sparse_layers, sparsify, standardise

from .bench import Bench, checked
from .rows import Case, Measured
from .sparse_steps import of_vectors
from .steps import make_step
from .training import (
    STEP_LIMITS,
    TrainingStep,
    apply_masks,
    batch_of,
    network,
    random_masks,
    reference_change,
    step_error,
)

DENSITY = 0.05
BATCH = 64
MASKED = "memory b64 tf32 masked dense"
_DENSE = {"dense": "tf32", "dense, blocks checkpointed": "tf32", "dense, bf16 autocast": "bf16"}


@dataclass(frozen=True)
class Ours:
    """A sparse model: its level, FedMef's NSConv or the network as it is, whether its blocks are checkpointed.

    granularity: with masks of that many rows on the Triton kernels, with 1 on the dense back end.
    """

    level: str
    precision: str = "tf32"
    nsconv: bool = False
    checkpointed: bool = False
    granularity: int = 1

    @property
    def label(self) -> str:
        """As the table names it."""
        how = f"sparse{' NSConv' if self.nsconv else ''}, {self.level}"
        how += ", blocks checkpointed" if self.checkpointed else ""
        how += f", V={self.granularity} triton" if self.granularity > 1 else ""
        return f"memory b64 {self.precision} {how}{', bf16 autocast' if self.precision == 'bf16' else ''}"


PRUNED = "pruned(0.2, bf16)"
OURS = (
    *(Ours("dense"), Ours("lossless"), Ours(PRUNED, nsconv=True)),
    *(Ours("recompute", "bf16", granularity=32), Ours("lossless", "bf16", granularity=32), Ours("lossless", "bf16")),
    *(Ours("dense", checkpointed=True), Ours(PRUNED), Ours("dense", nsconv=True)),
)


def cases() -> list[Case]:
    """Masked dense, the dense rivals, and ours by level."""
    rivals = [
        Case(f"memory b64 {precision} {how}", partial(dense_memory, how=how), versus=MASKED, seconds=2.0)
        for how, precision in _DENSE.items()
    ]
    ours = [Case(each.label, partial(sparse_memory, ours=each), versus=MASKED, seconds=2.0) for each in OURS]
    return [Case(MASKED, partial(dense_memory, how="masked dense"), seconds=4.0), *rivals, *ours]


class Checkpointed(nn.Module):
    """A module that keeps its input alone, and computes the rest again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """As the module's."""
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint, in place, each child that has a convolution: the stem and every residual block."""
    for name, module in model.named_children():
        if any(isinstance(inner, nn.Conv2d) for inner in module.modules()):
            setattr(model, name, Checkpointed(module))


def dense_memory(bench: Bench, how: str) -> Measured:
    """A dense step's peak and milliseconds; `how` is a key of `_DENSE` or "masked dense"."""
    precision = _DENSE.get(how, "tf32")
    step, reference = make_step(bench, BATCH, precision, "NCHW", masked=how == "masked dense")
    if "checkpointed" in how:
        checkpoint_blocks(step.model)
    return _measured(bench, step, reference)


def sparse_memory(bench: Bench, ours: Ours) -> Measured:
    """A sparse step's peak and milliseconds.

    At the level "pruned" the gradients of the convolutions' weights are not those of float64, and are left out of the
    check; those of all other parameters do not depend on what is kept.
    """
    if ours.granularity > 1:
        bench.need_cuda("Triton")
    reference = _reference(bench, ours.nsconv, ours.granularity)
    bench.clear()
    model, images, labels = _start(bench, ours.nsconv, ours.granularity)
    keep_activations(model, ours.level)
    if ours.checkpointed:
        checkpoint_blocks(model)
    step = TrainingStep(bench, model, images, labels, ours.precision)
    if not ours.level.startswith("pruned"):
        with ops.use_backend("triton") if ours.granularity > 1 else nullcontext():
            return _measured(bench, step, reference)
    layers = sparse_layers(model).values()
    pruned = {id(parameter) for layer in layers for parameter in layer.parameters() if parameter is not layer.bias}
    exact = [torch.full((p.numel(),), id(p) not in pruned) for p in step.parameters]
    return _measured(bench, step, reference, torch.cat(exact))


def _masks(bench: Bench, model: nn.Module, granularity: int) -> dict[str, Tensor]:
    masks = random_masks(model, max(DENSITY, 0.2) if bench.smoke else DENSITY)
    return {name: of_vectors(mask, granularity) for name, mask in masks.items()}


def _start(bench: Bench, nsconv: bool, granularity: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """The sparse model on the device, and the batch."""
    model = network(bench)
    model = standardise(model) if nsconv else model
    masks = {name.removesuffix(".weight"): mask for name, mask in _masks(bench, model, granularity).items()}
    model = sparsify(model, masks=masks, granularity=granularity)
    return model.to(bench.device), *batch_of(bench, bench.size(BATCH, 16))


@lru_cache
def _reference(bench: Bench, nsconv: bool, granularity: int) -> Tensor:
    """A first step's change: of the masked dense model; NSConv standardises active weights alone, so of itself."""
    if nsconv:
        return reference_change(bench, *_start(bench, True), None)
    model = network(bench)
    masks = _masks(bench, model, granularity)
    apply_masks(model, masks).to(bench.device)
    change = reference_change(bench, model, *batch_of(bench, bench.size(BATCH, 16)), masks)
    active = [masks.get(name, torch.ones(p.shape, dtype=torch.bool)) for name, p in model.named_parameters()]
    return change[torch.cat([mask.flatten() for mask in active])]


def _measured(bench: Bench, step: TrainingStep, reference: Tensor, which: Tensor | None = None) -> Measured:
    """which: bool, of every number that the step changes, whether it is compared with the reference."""
    error = checked(step_error(step, step, reference, which), STEP_LIMITS[step.precision], "the step")
    bench.clear()
    peak = bench.peak(step)
    timing = bench.time(step, seconds=0.5)
    return Measured({"step": timing}, error, peak, 1e3 * step.images.shape[0] / timing.median, "images/s")
