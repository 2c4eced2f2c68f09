"""Standardised weights on the device against float64 on the CPU."""

import pytest
import torch
from sparse_problems import LIMITS, error, poison, random, topology

from fedsparse import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "density"), [(64, 0.05), (512, 0.01), (3, 1.0)])
def test_standardise(rows: int, density: float, dtype: torch.dtype) -> None:
    t = topology((rows, 512, 3, 3), density)
    values, gain, g = random(t.nnz, dtype=dtype), random(rows, dtype=dtype, seed=1), random(t.nnz, dtype=dtype, seed=2)
    wide = [each.double().requires_grad_() for each in (values, gain)]
    expected = ops.standardise(*wide, t.row_starts(), 1e-4)
    wanted = torch.autograd.grad(expected, wide, g.double())
    own = [each.cuda().requires_grad_() for each in (values, gain)]
    poison()
    made = ops.standardise(*own, t.row_starts().cuda(), 1e-4)
    found = (made.detach(), *torch.autograd.grad(made, own, g.cuda()))
    for ours, theirs in zip(found, (expected.detach(), *wanted), strict=True):
        assert error(ours, theirs) <= LIMITS[dtype]
