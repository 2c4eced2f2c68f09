"""Pooling on blocked tensors: the maximum or the mean over one rectangle of pixels for each output pixel.

    blocked_max(x)      y [blocks, C, H', W', L], and for each entry the place of its maximum, uint8
    blocked_average(x)  y [blocks, C, H', W', L] = sum over the rectangle / divisor (0: its size)

x is [blocks, C, H, W, L]. Output (i, j) sees rows top[i] to bottom[i] and columns left[j] to right[j], ends excluded,
which covers max_pool2d, avg_pool2d and the adaptive ones. Kept for the backward: one byte an output entry for the
maximum (torch: eight), nothing for the mean. CPU only (C++, float32 and float64).
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsparse.ops.blocked import check_blocked
from fedsparse.ops.load import define

_WINDOWS = "int[] top, int[] bottom, int[] left, int[] right"

define(f"blocked_max(Tensor x, {_WINDOWS}) -> (Tensor y, Tensor picked)")
define(f"blocked_max_backward(Tensor gy, Tensor picked, int[2] size, {_WINDOWS}) -> Tensor")
define(f"blocked_average(Tensor x, {_WINDOWS}, float divisor) -> Tensor")
define(f"blocked_average_backward(Tensor gy, int[2] size, {_WINDOWS}, float divisor) -> Tensor")


class Windows(NamedTuple):
    """Rows top[i] to bottom[i] and columns left[j] to right[j] make output pixel (i, j)."""

    top: tuple[int, ...]
    bottom: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Pixels of the largest rectangle."""
        high = max(b - t for t, b in zip(self.top, self.bottom))
        return high * max(r - x for x, r in zip(self.left, self.right))


def _pooled(x: Tensor, windows: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:2], len(windows[0]), len(windows[2]), x.shape[4]), dtype=dtype)


@torch.library.register_fake("fedsparse::blocked_max")
def _(x: Tensor, *windows: Any) -> tuple[Tensor, Tensor]:
    return _pooled(x, windows, x.dtype), _pooled(x, windows, torch.uint8)


@torch.library.register_fake("fedsparse::blocked_max_backward")
def _(gy: Tensor, picked: Tensor, size: tuple[int, int], *windows: Any) -> Tensor:
    return gy.new_empty(*gy.shape[:2], *size, gy.shape[4])


@torch.library.register_fake("fedsparse::blocked_average")
def _(x: Tensor, *windows: Any) -> Tensor:
    return _pooled(x, windows, x.dtype)


@torch.library.register_fake("fedsparse::blocked_average_backward")
def _(gy: Tensor, size: tuple[int, int], *windows: Any) -> Tensor:
    return gy.new_empty(*gy.shape[:2], *size, gy.shape[4])


def reference_average(x: Tensor, windows: Windows, divisor: float) -> Tensor:
    """blocked_average by torch's own ops."""
    rows = [
        torch.stack(
            [
                x[:, :, t:b, left:r].sum((2, 3)) / (divisor or (b - t) * (r - left))
                for left, r in zip(windows.left, windows.right)
            ],
            2,
        )
        for t, b in zip(windows.top, windows.bottom)
    ]
    return torch.stack(rows, 2)


def reference_max(x: Tensor, windows: Windows) -> Tensor:
    """The maxima of blocked_max by torch's own ops."""
    rows = [
        torch.stack([x[:, :, t:b, left:r].amax((2, 3)) for left, r in zip(windows.left, windows.right)], 2)
        for t, b in zip(windows.top, windows.bottom)
    ]
    return torch.stack(rows, 2)


@lru_cache(maxsize=256)
def sliding_windows(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Windows:
    """The windows of max_pool2d and avg_pool2d, cut to the image; dilation 1, sizes rounded down."""
    edges: list[tuple[int, ...]] = []
    for n, k, s, p in zip(size, kernel, stride, padding):
        starts = [i * s - p for i in range((n + 2 * p - k) // s + 1)]
        edges += [tuple(max(0, i) for i in starts), tuple(min(n, i + k) for i in starts)]
    return Windows(*edges)


@lru_cache(maxsize=256)
def adaptive_windows(size: tuple[int, int], out: tuple[int, int]) -> Windows:
    """The windows of adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""
    edges: list[tuple[int, ...]] = []
    for n, m in zip(size, out):
        edges += [tuple(i * n // m for i in range(m)), tuple(-(-(i + 1) * n // m) for i in range(m))]
    return Windows(*edges)


class Max(torch.autograd.Function):
    """The maximum of each window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        """Arguments as in `blocked_max`."""
        y, picked = torch.ops.fedsparse.blocked_max(x, *windows)
        ctx.save_for_backward(picked)
        ctx.size, ctx.windows = tuple(x.shape[2:4]), windows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        """Gradient of x."""
        (picked,) = ctx.saved_tensors
        return torch.ops.fedsparse.blocked_max_backward(gy, picked, ctx.size, *ctx.windows), None


class Average(torch.autograd.Function):
    """The mean of each window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows, divisor: float) -> Tensor:
        """Arguments as in `blocked_average`."""
        ctx.size, ctx.windows, ctx.divisor = tuple(x.shape[2:4]), windows, divisor
        return torch.ops.fedsparse.blocked_average(x, *windows, divisor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x."""
        raw = torch.ops.fedsparse
        return raw.blocked_average_backward(gy, ctx.size, *ctx.windows, ctx.divisor), None, None


def blocked_max(x: Tensor, windows: Windows) -> Tensor:
    """Maximum of each window, the first where several are equal, NaN where there is one; differentiable in x.

    ValueError for a window of more than 256 pixels: its place is kept in a byte.
    """
    check_blocked("blocked_max", "x", x)
    if windows.largest > 256:
        raise ValueError(f"blocked_max: a window must hold at most 256 pixels, not {windows.largest}.")
    return Max.apply(x, windows)


def blocked_average(x: Tensor, windows: Windows, divisor: float = 0.0) -> Tensor:
    """Sum of each window over `divisor`, or over the window's size where that is 0; differentiable in x."""
    check_blocked("blocked_average", "x", x)
    return Average.apply(x, windows, divisor)
