"""Blocked tensors: images in blocks of as many as a 64-byte register holds, the images innermost.

    to_blocked     x [B, C, H, W] -> [ceil(B / L), C, H, W, L], L = 16 in float32 and bfloat16, 8 in float64
    from_blocked   the way back, for the first B images
    blocked_sum    x [blocks, C, H, W, L] -> [C], the sum over the B true images and all pixels

    d to_blocked = from_blocked      d from_blocked = to_blocked

The last block has lanes without an image. What stands there is unspecified: an op on blocked tensors works lane by
lane, or takes B and leaves those lanes out, so that they never enter a result. CPU only (C++, float32 and
float64; layout and convolutions of strips in bfloat16 too).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.ops.load import define, require_compiled

LANES = {torch.float32: 16, torch.float64: 8}
PRODUCT_LANES = LANES | {torch.bfloat16: 16}
"""What the layout and the products of convolutions take."""

define("to_blocked(Tensor x) -> Tensor")
define("from_blocked(Tensor x, SymInt batch) -> Tensor")
define("blocked_sum(Tensor x, SymInt batch) -> Tensor")


@torch.library.register_fake("fedsparse::to_blocked")
def _(x: Tensor) -> Tensor:
    lanes = PRODUCT_LANES[x.dtype]
    return x.new_empty((x.shape[0] + lanes - 1) // lanes, *x.shape[1:], lanes)


@torch.library.register_fake("fedsparse::from_blocked")
def _(x: Tensor, batch: int) -> Tensor:
    return x.new_empty(batch, *x.shape[1:4])


@torch.library.register_fake("fedsparse::blocked_sum")
def _(x: Tensor, batch: int) -> Tensor:
    return x.new_empty(x.shape[1])


def reference_to_blocked(x: Tensor) -> Tensor:
    """to_blocked by torch's own ops; zeros in the lanes without an image."""
    lanes = PRODUCT_LANES[x.dtype]
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -x.shape[0] % lanes))
    return padded.unflatten(0, (-1, lanes)).permute(0, 2, 3, 4, 1).contiguous()


def reference_from_blocked(x: Tensor, batch: int) -> Tensor:
    """from_blocked by torch's own ops."""
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)[:batch].contiguous()


def reference_blocked_sum(x: Tensor, batch: int) -> Tensor:
    """blocked_sum by torch's own ops."""
    return reference_from_blocked(x, batch).sum((0, 2, 3))


class ToBlocked(torch.autograd.Function):
    """Into blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x [B, C, H, W]."""
        ctx.batch = x.shape[0]
        return torch.ops.fedsparse.to_blocked(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Gradient of x."""
        return from_blocked(g, ctx.batch)


class FromBlocked(torch.autograd.Function):
    """Out of blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: int) -> Tensor:
        """x [blocks, C, H, W, L]."""
        return torch.ops.fedsparse.from_blocked(x, batch)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Gradient of x."""
        return to_blocked(g), None


def to_blocked(x: Tensor) -> Tensor:
    """x [B, C, H, W] -> [ceil(B / L), C, H, W, L], differentiable; ValueError for another dtype or device."""
    if x.dtype not in PRODUCT_LANES or x.device.type != "cpu" or x.dim() != 4:
        raise ValueError(
            f"to_blocked: x must be float32, float64 or bfloat16, on the CPU, with 4 dimensions, not {x.dtype} on "
            f"{x.device} with {x.dim()}."
        )
    require_compiled("cpu")
    return ToBlocked.apply(x)


def from_blocked(x: Tensor, batch: int) -> Tensor:
    """x [blocks, C, H, W, L] -> [B, C, H, W], differentiable; ValueError for another shape."""
    check_blocked("from_blocked", "x", x, PRODUCT_LANES)
    check_batch("from_blocked", x, batch)
    return FromBlocked.apply(x, batch)


def check_blocked(op: str, name: str, x: Tensor, lanes: Mapping[torch.dtype, int] = LANES) -> None:
    """ValueError where x is no blocked tensor of one of these dtypes."""
    if x.dtype not in lanes or x.device.type != "cpu" or x.dim() != 5 or x.shape[4] != lanes[x.dtype]:
        kinds = " or ".join(f"[blocks, C, H, W, {n}] {str(t).removeprefix('torch.')}" for t, n in lanes.items())
        raise ValueError(f"{op}: {name} must be {kinds} on the CPU, not {tuple(x.shape)} {x.dtype} on {x.device}.")
    require_compiled("cpu")


def check_batch(op: str, x: Tensor, batch: int) -> None:
    """ValueError where that many images do not fill the blocks of x."""
    lanes = x.shape[4]
    if (batch + lanes - 1) // lanes != x.shape[0]:
        raise ValueError(f"{op}: {batch} images do not make {x.shape[0]} blocks of {lanes}.")
