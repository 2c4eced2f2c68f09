"""What a line of the list of Triton kernels is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .machine_code import Code, triton_code

TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
SIZES = ("blocks", "channels", "high", "wide", "out_high", "out_wide")
_GEOMETRY = ("KERNEL_Y", "KERNEL_X", "STRIDE_Y", "STRIDE_X", "PADDING_Y", "PADDING_X", "DILATION_Y", "DILATION_X")
# kernel, stride, padding, dilation of the convolutions of a ResNet
GEOMETRIES = {
    "3x3": (3, 3, 1, 1, 1, 1, 1, 1),
    "3x3/2": (3, 3, 2, 2, 1, 1, 1, 1),
    "1x1/2": (1, 1, 2, 2, 0, 0, 1, 1),
    "linear": (1, 1, 1, 1, 0, 0, 1, 1),
}


@dataclass(frozen=True)
class Listed:
    """A kernel with its specialisation: `compile(arch)` makes it; `tensor_cores`: whether it is meant to use them."""

    label: str
    compile: Callable[..., Code]
    tensor_cores: bool


def listed(
    label: str,
    kernel: Any,
    pointers: str,
    sizes: str,
    constants: dict[str, Any],
    warps: int,
    tensor_cores: bool = False,
    fusion: bool = True,
) -> Listed:
    """pointers: "name:type ...", in order before the sizes, int32 but for eps, momentum and limit."""
    signature = {name: f"*{kind}" for name, kind in (each.split(":") for each in pointers.split())}
    signature |= {name: "fp32" if name in ("eps", "momentum", "limit") else "i32" for name in sizes.split()}
    compiled = partial(triton_code, label, kernel, signature, constants, warps, fusion=fusion)
    return Listed(label, compiled, tensor_cores)


def stored(precision: str) -> str:
    """The type in memory of a precision."""
    return "fp32" if precision == "tf32" else precision


def convolution(name: str) -> dict[str, Any]:
    """The constants of a geometry."""
    return dict(zip(_GEOMETRY, GEOMETRIES[name], strict=True)) | {"LANES": 16}
