"""Dense training steps of ResNet-18: what a sparse step is compared with."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from .bench import Bench, checked
from .rows import Case, Measured
from .training import (
    LAYOUTS,
    STEP_LIMITS,
    TrainingStep,
    apply_masks,
    batch_of,
    captured,
    network,
    random_masks,
    reference_change,
    step_error,
    with_layout,
)

MASKED_DENSITY = 0.05
# (batch, precision, mode, layout), most important first; "masked" is dense work under masks of 5 %.
_PLAN = [
    *[(64, p, "masked eager", "NCHW") for p in ("fp32", "tf32", "bf16")],
    *[(64, p, "eager", layout) for p in ("fp32", "tf32", "bf16") for layout in LAYOUTS],
    *[(64, p, "graph", layout) for p in ("fp32", "tf32", "bf16") for layout in LAYOUTS],
    (64, "bf16", "masked graph", "channels_last"),
    *[(256, p, "masked eager", "NCHW") for p in ("tf32", "bf16")],
    *[(256, p, "eager", layout) for p in ("fp32", "tf32", "bf16") for layout in LAYOUTS],
    *[(256, p, "graph", "channels_last") for p in ("tf32", "bf16")],
]


def label(batch: int, precision: str, mode: str, layout: str) -> str:
    """Name of a dense step's case."""
    return f"step b{batch} {precision} {mode} {layout}"


def cases() -> list[Case]:
    """Eager, masked and graph-captured steps; torch.compile is a section of its own."""
    return [
        Case(
            label(batch, precision, mode, layout),
            partial(dense_step, batch=batch, precision=precision, mode=mode, layout=layout),
            versus=label(batch, precision, "masked eager", "NCHW"),
            seconds=4.0,
        )
        for batch, precision, mode, layout in _PLAN
    ]


@lru_cache
def _reference(bench: Bench, batch: int, masked: bool) -> torch.Tensor:
    model, images, labels, masks = _start(bench, batch, masked)
    return reference_change(bench, model, images, labels, masks)


def _start(
    bench: Bench, batch: int, masked: bool
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, dict[str, torch.Tensor] | None]:
    model = network(bench)
    masks = random_masks(model, MASKED_DENSITY) if masked else None
    model = apply_masks(model, masks or {}).to(bench.device)
    images, labels = batch_of(bench, bench.size(batch, 16))
    return model, images, labels, masks


def make_step(bench: Bench, batch: int, precision: str, layout: str, masked: bool) -> tuple[TrainingStep, torch.Tensor]:
    """A step on the device and the float64 reference of its first change."""
    reference = _reference(bench, batch, masked)
    bench.clear()
    model, images, labels, masks = _start(bench, batch, masked)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    return TrainingStep(bench, with_layout(model, layout), images, labels, precision, masks), reference


def dense_step(bench: Bench, batch: int, precision: str, mode: str, layout: str) -> Measured:
    """Milliseconds of one step; rate in images per second."""
    if "graph" in mode:
        bench.need_cuda("a CUDA graph")
    step, reference = make_step(bench, batch, precision, layout, masked="masked" in mode)
    error = checked(step_error(step, step, reference), STEP_LIMITS[precision], "the step")
    if "graph" in mode:
        run, peak = captured(bench, [step])
        error = checked(step_error(step, run, reference), STEP_LIMITS[precision], "the captured step")
    else:
        run, peak = step, bench.peak(step)
    timing = bench.time(run, seconds=1.0)
    return Measured({"step": timing}, error, peak, 1e3 * step.images.shape[0] / timing.median, "images/s")
