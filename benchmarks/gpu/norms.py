"""A norm, the sum with a residual and ReLU: torch's three kernels, and one that keeps a bit an element."""

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
GROUPS = 32  # of a group norm, as torchvision's models and Wu and He (2018) have them
LIMITS = {"fp32": 1e-4, "bf16": 2e-2}


def cases() -> list[Case]:
    """Batch norm in bf16 at every stage, in fp32 at the first, group norm at two; torch's in its fastest layout."""
    first, second, third, last = STAGES
    plan = [("batch", stage, "bf16") for stage in (first, third)] + [("group", first, "bf16")]
    plan += [("batch", second, "bf16"), ("batch", last, "bf16"), ("batch", first, "fp32"), ("group", third, "bf16")]
    return [
        Case(
            label + how,
            partial(three if how == "torch" else fused, kind=kind, stage=stage, precision=precision),
            versus="" if how == "torch" else label + "torch",
            seconds=1.0,
        )
        for kind, stage, precision in plan
        for label in [f"{kind} norm + residual + ReLU {stage.name} b{BATCH} {precision} "]
        for how in ("torch", "fused")
    ]


def _groups(bench: Bench, channels: int) -> int:
    return channels // 2 if bench.smoke else GROUPS


def _operands(bench: Bench, stage: Stage, precision: str) -> list[Tensor]:
    """x, residual, gy [B, C, H, W] in the dtype, weight and bias float32 [C]."""
    side, channels = bench.size(stage.side, 4), bench.size(stage.channels, 6)
    shape = (bench.size(BATCH, 16), channels, side, side)
    images = [bench.random(*shape, seed=seed, dtype=dtype_of(precision)) for seed in range(3)]
    return [*images, *(bench.random(channels, seed=seed) for seed in (3, 4))]


def normed(kind: str, groups: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's batch norm in training, or group norm."""
    if kind == "batch":
        return F.batch_norm(x, None, None, weight, bias, True)
    return F.group_norm(x, groups, weight, bias)


def three(bench: Bench, kind: str, stage: Stage, precision: str) -> Measured:
    """F.batch_norm (channels_last) or F.group_norm (which has NCHW alone), + and F.relu."""
    x, residual, gy, weight, bias = _operands(bench, stage, precision)
    layout = torch.channels_last if kind == "batch" else torch.contiguous_format
    x, residual, gy = (each.contiguous(memory_format=layout) for each in (x, residual, gy))
    groups = _groups(bench, x.shape[1])

    def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(normed(kind, groups, x, weight.to(scale), bias.to(scale)) + residual)

    scale = torch.float32 if kind == "batch" else x.dtype  # torch's group norm takes one dtype
    return _measured(bench, forward, kind, [x, residual, weight, bias], gy, precision)


def fused(bench: Bench, kind: str, stage: Stage, precision: str) -> Measured:
    """ops.innermost_norm or ops.innermost_group_norm, images innermost in memory."""
    bench.need_cuda("Triton")
    x, residual, gy, weight, bias = _operands(bench, stage, precision)
    x, residual, gy = (each.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) for each in (x, residual, gy))
    groups = _groups(bench, x.shape[1])

    def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if kind == "batch":
            return ops.innermost_norm(x, None, None, weight, bias, True, 0.1, 1e-5, residual, relu=True)
        return ops.innermost_group_norm(x, groups, weight, bias, 1e-5, residual, relu=True)

    return _measured(bench, forward, kind, [x, residual, weight, bias], gy, precision)


def _measured(
    bench: Bench, forward: Callable[..., Tensor], kind: str, operands: list[Tensor], gy: Tensor, precision: str
) -> Measured:
    """Forward, and the backward pass alone, over a graph that is kept."""
    operands = [each.requires_grad_() for each in operands]
    wide = [each.detach().double().requires_grad_() for each in operands]
    total = normed(kind, _groups(bench, wide[0].shape[1]), wide[0], wide[2], wide[3]) + wide[1]
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
