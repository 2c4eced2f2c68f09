"""`ops.standardise` on the Triton back end, in the interpreter, against the reference in float64; prints errors.

Started by test_standardise_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys

import torch
from spmm_interpreted import relative_error
from torch import Tensor

from fedsparse import ops

LEAST = 1e-4
# How many active weights the rows have
ROWS = {
    "long, short and empty ones": [1000, 3, 0, 17, 512, 513],
    "equal weights last": [40, 9, 25],
    "one row": [300],
    "an empty row": [0],
    "no row": [],
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
RUNS = [(name, "float32") for name in ROWS] + [("long, short and empty ones", d) for d in ("float64", "bfloat16")]


def problem(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values far from zero, gain, row starts, and the gradient of the result."""
    lengths, generator = ROWS[name], torch.Generator().manual_seed(8)
    values, gain, g = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (sum(lengths), len(lengths), sum(lengths))
    )
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    if name == "equal weights last":
        values[starts[-2] :] = 0.25
    return values + 3, gain, starts, g


def steps(values: Tensor, gain: Tensor, starts: Tensor, g: Tensor, backend: str) -> list[Tensor]:
    leaves = values.clone().requires_grad_(), gain.clone().requires_grad_()
    with ops.use_backend(backend):
        made = ops.standardise(*leaves, starts, LEAST)
        return [made.detach(), *torch.autograd.grad(made, leaves, g)]


def errors(name: str, dtype: str) -> list[float]:
    """Of the result, the gradient of the values and that of the gain."""
    values, gain, starts, g = problem(name, DTYPES[dtype])
    found = steps(values, gain, starts, g, "triton")
    expected = steps(values.double(), gain.double(), starts, g.double(), "reference")
    return [
        relative_error(a, b) if a.numel() and bool(b.any()) else float(a.abs().sum()) for a, b in zip(found, expected)
    ]


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # new memory holds NaN
    json.dump({f"{name}/{dtype}": errors(name, dtype) for name, dtype in RUNS}, sys.stdout, allow_nan=True)
