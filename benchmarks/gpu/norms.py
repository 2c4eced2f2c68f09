"""Batch norm, the sum with a residual and ReLU: torch's three kernels, and one that keeps a bit an element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse import ops

from .bench import Bench, checked, relative_error
from .layers import STAGES, Stage, dtype_of
from .rows import Case, Measured

BATCH = 64
LIMITS = {"fp32": 1e-4, "bf16": 2e-2}


def cases() -> list[Case]:
    """Every stage in bf16, the first in fp32 too; torch's in channels_last, its fastest layout."""
    plan = [(stage, "bf16") for stage in STAGES] + [(STAGES[0], "fp32")]
    return [
        Case(
            f"norm + residual + ReLU {stage.name} b{BATCH} {precision} {how}",
            partial(three if how == "torch" else fused, stage=stage, precision=precision),
            versus="" if how == "torch" else f"norm + residual + ReLU {stage.name} b{BATCH} {precision} torch",
        )
        for stage, precision in plan
        for how in ("torch", "fused")
    ]


def _operands(bench: Bench, stage: Stage, precision: str) -> list[Tensor]:
    """x, residual, gy [B, C, H, W] in the dtype, weight and bias float32 [C]."""
    side, channels = bench.size(stage.side, 4), bench.size(stage.channels, 5)
    shape = (bench.size(BATCH, 16), channels, side, side)
    images = [bench.random(*shape, seed=seed, dtype=dtype_of(precision)) for seed in range(3)]
    return [*images, *(bench.random(channels, seed=seed) for seed in (3, 4))]


def three(bench: Bench, stage: Stage, precision: str) -> Measured:
    """F.batch_norm, + and F.relu."""
    x, residual, gy, weight, bias = _operands(bench, stage, precision)
    x, residual, gy = (each.contiguous(memory_format=torch.channels_last) for each in (x, residual, gy))

    def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, weight, bias, True) + residual)

    return _measured(bench, forward, [x, residual, weight, bias], gy, precision)


def fused(bench: Bench, stage: Stage, precision: str) -> Measured:
    """ops.innermost_norm, images innermost in memory."""
    bench.need_cuda("Triton")
    x, residual, gy, weight, bias = _operands(bench, stage, precision)
    x, residual, gy = (each.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) for each in (x, residual, gy))

    def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.innermost_norm(x, None, None, weight, bias, True, 0.1, 1e-5, residual, relu=True)

    return _measured(bench, forward, [x, residual, weight, bias], gy, precision)


def _measured(
    bench: Bench, forward: Callable[..., Tensor], operands: list[Tensor], gy: Tensor, precision: str
) -> Measured:
    """Forward, and the backward pass alone, over a graph that is kept."""
    operands = [each.requires_grad_() for each in operands]
    wide = [each.detach().double().requires_grad_() for each in operands]
    total = F.batch_norm(wide[0], None, None, wide[2], wide[3], True) + wide[1]
    y = forward(*operands)
    error = checked(relative_error(y.detach(), total.detach().relu()), LIMITS[precision], "the output")
    # Rounding may move a number across 0: the mask is that of the output.
    wanted = torch.autograd.grad(total, wide, torch.where(y > 0, gy, 0).double())
    found = torch.autograd.grad(y, operands, gy, retain_graph=True)
    for ours, theirs in zip(found, wanted, strict=True):
        error = max(error, checked(relative_error(ours, theirs), LIMITS[precision], "a gradient"))
    times = {
        "forward": bench.time(lambda: forward(*operands), flush=True, seconds=bench.seconds / 2),
        "backward": bench.time(
            lambda: torch.autograd.grad(y, operands, gy, retain_graph=True), flush=True, seconds=bench.seconds / 2
        ),
    }
    moved = 3 * y.numel() * y.element_size()
    return Measured(times, error, rate=moved / times["forward"].median / 1e9, unit="TB/s")
