"""Dense 3 x 3 convolutions of the four stages of ResNet-18, three passes each, batch 64 and 256."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .bench import PRECISIONS, Bench, checked, relative_error
from .rows import Case, Measured
from .training import LAYOUTS

PASSES = ("forward", "input", "weight")
LIMITS = {"fp32": 1e-3, "tf32": 2e-3, "bf16": 1e-2}


@dataclass(frozen=True)
class Stage:
    """Channels in and out, side of the square feature map."""

    channels: int
    side: int

    @property
    def name(self) -> str:
        """As the tables name it."""
        return f"{self.channels}@{self.side}x{self.side}"


STAGES = (Stage(64, 32), Stage(128, 16), Stage(256, 8), Stage(512, 4))
BATCH = 64


@dataclass(frozen=True)
class Operands:
    """x and gy [B, C, H, W], w [C, C, 3, 3], in the dtype that is timed."""

    x: Tensor
    gy: Tensor
    w: Tensor

    def passes(self) -> dict[str, Callable[[], Tensor]]:
        """The dense passes by name."""
        return {
            "forward": lambda: F.conv2d(self.x, self.w, padding=1),
            "input": lambda: backward(self.gy, self.x, self.w, [True, False])[0],
            "weight": lambda: backward(self.gy, self.x, self.w, [False, True])[1],
        }

    def to(self, dtype: torch.dtype, layout: str = "NCHW") -> Operands:
        """The same in another dtype and layout."""
        kind = LAYOUTS[layout]
        return Operands(*(t.to(dtype).contiguous(memory_format=kind) for t in (self.x, self.gy, self.w)))


def backward(gy: Tensor, x: Tensor, w: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of a padded 3 x 3 convolution to x and w, those that are wanted."""
    return torch.ops.aten.convolution_backward(
        gy, x, w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, [*wanted, False]
    )


def dtype_of(precision: str) -> torch.dtype:
    """What the operands are stored in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def operands(bench: Bench, stage: Stage, precision: str, images: int = BATCH) -> Operands:
    """Random operands, float32 in memory, exact in the dtype of `precision`."""
    batch, channels = bench.size(images, 3), bench.size(stage.channels, 5)
    side = bench.size(stage.side, 6)
    x = bench.random(batch, channels, side, side, seed=1)
    gy = bench.random(batch, channels, side, side, seed=2)
    w = bench.random(channels, channels, 3, 3, seed=3) / (9 * channels) ** 0.5
    return Operands(x, gy, w).to(dtype_of(precision)).to(torch.float32)


def flops(of: Operands) -> int:
    """Floating-point operations of one dense pass."""
    return 2 * of.w.numel() * of.x.shape[0] * of.x.shape[2] * of.x.shape[3]


def label(stage: Stage, precision: str, layout: str, batch: int = BATCH) -> str:
    """Name of a dense layer's case."""
    images = "" if batch == BATCH else f" b{batch}"
    return f"layer {stage.name}{images} {precision} {layout}"


def cases() -> list[Case]:
    """Each stage, precision and layout; then bfloat16 at batch 256."""
    plan = [(stage, p, layout, BATCH) for p in PRECISIONS for stage in STAGES for layout in LAYOUTS]
    plan += [(stage, "bf16", "channels_last", 256) for stage in STAGES]
    return [
        Case(
            label(*each),
            partial(dense_layer, stage=stage, precision=p, layout=layout, batch=batch),
            versus=label(stage, p, "NCHW", batch) if batch == BATCH else "",
        )
        for each in plan
        for stage, p, layout, batch in [each]
    ]


def dense_layer(bench: Bench, stage: Stage, precision: str, layout: str, batch: int) -> Measured:
    """Milliseconds of the three passes; rate of the forward in TFLOP/s."""
    plain = operands(bench, stage, precision, batch)
    with bench.reference():
        expected = {name: run() for name, run in plain.to(torch.float64).passes().items()}
    laid = plain.to(dtype_of(precision), layout)
    with bench.precision(precision):
        errors = {name: relative_error(run(), expected[name]) for name, run in laid.passes().items()}
        for name, error in errors.items():
            checked(error, LIMITS[precision], f"the {name} pass")
        times = {name: bench.time(run, flush=True, seconds=bench.seconds / 2) for name, run in laid.passes().items()}
    rate = flops(laid) / times["forward"].median / 1e9
    return Measured(times, max(errors.values()), rate=rate, unit="TFLOP/s")
