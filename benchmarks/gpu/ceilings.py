"""What the device can do at best: bytes copied and products multiplied per second."""

from __future__ import annotations

from functools import partial

import torch

from .bench import PRECISIONS, Bench, checked, relative_error
from .rows import Case, Measured

LIMITS = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}


def cases() -> list[Case]:
    """Copy bandwidth, then the matrix product in each precision."""
    products = [Case(f"matrix product {p}", partial(product, precision=p)) for p in PRECISIONS]
    return [Case("copy", copy), *products]


def copy(bench: Bench) -> Measured:
    """Device to device, counting bytes read and written: TB/s."""
    source = bench.random(bench.size(2**29, 2**10))
    target = torch.full_like(source, torch.nan)
    target.copy_(source)
    error = checked(relative_error(target[:1000], source[:1000]), 0.0, "the copy")
    timing = bench.time(lambda: target.copy_(source))
    moved = 2 * source.numel() * source.element_size()
    return Measured({"copy": timing}, error, rate=moved / timing.median / 1e9, unit="TB/s")


def product(bench: Bench, precision: str) -> Measured:
    """n x n x n, n = 8192, random operands: TFLOP/s."""
    n = bench.size(8192, 32)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = bench.random(n, n, seed=1, dtype=dtype), bench.random(n, n, seed=2, dtype=dtype)
    out = torch.full_like(a, torch.nan)
    with bench.precision(precision):
        torch.mm(a, b, out=out)
        error = relative_error(out[:16], a[:16].double() @ b.double())
        checked(error, LIMITS[precision], "the product")
        timing = bench.time(lambda: torch.mm(a, b, out=out))
    return Measured({"product": timing}, error, rate=2 * n**3 / timing.median / 1e9, unit="TFLOP/s")
