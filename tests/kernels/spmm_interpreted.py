"""Runs the Triton kernels of spmm under Triton's interpreter and prints each case's relative errors as JSON.

Started by test_spmm_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from typing import Any

import torch
from fedsparse.kernels import spmm
from torch import Tensor

# name: (batch, rows, channels, density) and in the name why this shape
SHAPES = {
    "smaller than any tile": (3, 5, 7, 0.4),
    "one nonzero": (2, 4, 6, 0.0),
    "one element": (1, 1, 1, 1.0),
    "several chunks of nonzeros in a row": (5, 3, 100, 0.6),
    "batch one over the tile": (65, 3, 17, 0.3),
    "batch one under the tile": (63, 3, 19, 0.3),
    "several batch tiles, primes": (131, 5, 7, 0.2),
    "full": (4, 8, 16, 1.0),
    "nothing active": (4, 3, 5, -1.0),
    "empty batch": (0, 3, 5, 0.5),
}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# float32 runs every shape, the other types these
OTHERS = ("one nonzero", "several chunks of nonzeros in a row", "batch one over the tile", "nothing active")
RUNS = [(shape, dtype) for shape in SHAPES for dtype in DTYPES if dtype == "float32" or shape in OTHERS]


def poison_new_tensors() -> None:
    """Make Tensor.new_empty return NaN, so that an element no program writes shows in the error."""

    plain = torch.Tensor.new_empty

    def filled(self: Tensor, *size: Any, **options: Any) -> Tensor:
        new = plain(self, *size, **options)
        return new.fill_(torch.nan) if new.is_floating_point() else new

    torch.Tensor.new_empty = filled  # type: ignore[method-assign, assignment]


def csr(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return indptr int32 [N+1] and cols int32 [nnz] of a bool mask [N, C]."""
    indptr = torch.zeros(mask.shape[0] + 1, dtype=torch.int32)
    indptr[1:] = mask.sum(1).cumsum(0)
    return indptr, mask.nonzero()[:, 1].int()


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Return |out - expected| / |expected|, 0 for two empty tensors; NaN if any element is NaN."""
    assert out.shape == expected.shape, (out.shape, expected.shape)
    scale = expected.norm().item()
    error = (out.double() - expected).norm().item()
    return error / scale if scale else error


def errors(shape: tuple[int, int, int, float], dtype: torch.dtype) -> dict[str, float]:
    """Return the relative error of spmm, spmm_t and sddmm against dense float64 products."""
    batch, rows, channels, density = shape
    generator = torch.Generator().manual_seed(batch * 131 + rows)
    mask = torch.rand(rows, channels, generator=generator) < density
    if rows > 2 and density < 1:
        mask[1] = False
        mask[0, -1] = density >= 0
    weight = (torch.randn(rows, channels, generator=generator) * mask).to(dtype)
    # Transposed views: the kernels must not rely on the layout of what they are given.
    x = torch.randn(channels, batch, generator=generator).to(dtype).t()
    g = torch.randn(rows, batch, generator=generator).to(dtype).t()
    values, (indptr, cols), (t_indptr, t_cols) = weight[mask], csr(mask), csr(mask.t())
    order = torch.full(mask.shape, -1, dtype=torch.int32)
    order[mask] = torch.arange(values.numel(), dtype=torch.int32)
    perm = order.t()[mask.t()]
    wide = [tensor.double() for tensor in (weight, x, g)]
    return {
        "spmm": relative_error(spmm.csr_product(values, indptr, cols, None, x), wide[1] @ wide[0].t()),
        "spmm_t": relative_error(spmm.csr_product(values, t_indptr, t_cols, perm, g), wide[2] @ wide[0]),
        "sddmm": relative_error(spmm.csr_sample(g, x, indptr, cols), (wide[2].t() @ wide[1])[mask]),
    }


if __name__ == "__main__":
    poison_new_tensors()
    json.dump({f"{s}/{d}": errors(SHAPES[s], DTYPES[d]) for s, d in RUNS}, sys.stdout, allow_nan=True)
