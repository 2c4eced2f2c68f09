"""Dense training steps under torch.compile, alone and captured in a CUDA graph: the strongest dense rival."""

from __future__ import annotations

from functools import partial

import torch

from .bench import Bench, checked
from .rows import Case, Measured
from .steps import label, make_step
from .training import STEP_LIMITS, captured, step_error

LAYOUT = "channels_last"
_PLAN = [(64, "bf16"), (64, "tf32"), (256, "bf16"), (64, "fp32"), (256, "tf32")]


def cases() -> list[Case]:
    """Each batch size and precision; compilation takes most of a case's time."""
    return [
        Case(
            label(batch, precision, "compiled", LAYOUT),
            partial(compiled_step, batch=batch, precision=precision),
            versus=label(batch, precision, "masked eager", "NCHW"),
            seconds=45.0,
        )
        for batch, precision in _PLAN
    ]


def compiled_step(bench: Bench, batch: int, precision: str) -> Measured:
    """Milliseconds of one compiled step, launched by the host and (on a GPU) replayed from a graph."""
    step, reference = make_step(bench, batch, precision, LAYOUT, masked=False)
    torch._dynamo.reset()
    backend = "eager" if bench.smoke else "inductor"
    step.forward = torch.compile(step.model, backend=backend, dynamic=False)
    error = checked(step_error(step, step, reference), STEP_LIMITS[precision], "the compiled step")
    times, peak = {"step": bench.time(step, seconds=1.0)}, bench.peak(step)
    if bench.cuda:
        replay, _ = captured(bench, [step])
        checked(step_error(step, replay, reference), STEP_LIMITS[precision], "the captured compiled step")
        times["graph"] = bench.time(replay, seconds=1.0)
    return Measured(times, error, peak, 1e3 * step.images.shape[0] / times["step"].median, "images/s")
