"""Peak memory of a ResNet-18 training step: this package at each level of its store, against dense torch.

The CPU's table is `benchmarks/memory.py`; here the bytes are torch's `max_memory_allocated`, all that is alive during a
step included: weights, masks, momentum, the batch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedsparse.nn import keep_activations, sparsify

from .bench import Bench, checked
from .rows import Case, Measured
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

LEVELS = ("dense", "lossless")
"""Of the store, off the CPU: outputs of ReLU packed by torch; norms keep their inputs at every level."""
DENSITY = 0.05
BATCH = 64
MASKED = "memory b64 tf32 masked dense"
_DENSE = {"dense": "tf32", "dense, blocks checkpointed": "tf32", "dense, bf16 autocast": "bf16"}


def cases() -> list[Case]:
    """Masked dense, the dense rivals, and ours by level."""
    ours = [
        Case(f"memory b64 tf32 sparse, {level}", partial(sparse_memory, level=level), versus=MASKED, seconds=4.0)
        for level in LEVELS
    ]
    rivals = [
        Case(f"memory b64 {precision} {how}", partial(dense_memory, how=how), versus=MASKED, seconds=4.0)
        for how, precision in _DENSE.items()
    ]
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


def sparse_memory(bench: Bench, level: str) -> Measured:
    """A sparse step's peak and milliseconds at a level of the store."""
    model = network(bench)
    masks = random_masks(model, max(DENSITY, 0.2) if bench.smoke else DENSITY)
    apply_masks(model, masks).to(bench.device)
    images, labels = batch_of(bench, bench.size(BATCH, 16))
    reference = reference_change(bench, model, images, labels, masks)
    bench.clear()
    layers = {name.removesuffix(".weight"): mask.to(bench.device) for name, mask in masks.items()}
    sparse = sparsify(model, masks=layers)
    step = TrainingStep(bench, keep_activations(sparse, level), images, labels, "tf32")
    flat = torch.cat([mask.flatten() for mask in _all_masks(network(bench), masks)])
    return _measured(bench, step, reference[flat])


def _all_masks(model: nn.Module, masks: dict[str, Tensor]) -> list[Tensor]:
    """For every parameter in order the mask, or ones."""
    return [masks.get(name, torch.ones(p.shape, dtype=torch.bool)) for name, p in model.named_parameters()]


def _measured(bench: Bench, step: TrainingStep, reference: Tensor) -> Measured:
    error = checked(step_error(step, step, reference), STEP_LIMITS[step.precision], "the step")
    bench.clear()
    peak = bench.peak(step)
    timing = bench.time(step, seconds=0.5)
    return Measured({"step": timing}, error, peak, 1e3 * step.images.shape[0] / timing.median, "images/s")
