"""Runs `ops.innermost_group_norm` under Triton's interpreter against torch's in float64; prints errors as JSON.

Started by test_norm_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys

import torch
import torch.nn.functional as F
from norm_interpreted import innermost
from spmm_interpreted import poison_new_tensors, relative_error

from fedsparse.ops.innermost_group_norm import innermost_group_norm

# (B, C, H, W), groups, dtype of x, affine: why. "residual", "relu", "kept as bfloat16" in the name: with them
GROUP_CASES = {
    "several parts of a group": ((16, 6, 9, 19), 2, torch.float32, True),
    "several parts of a channel": ((70, 2, 17, 16), 2, torch.float32, True),
    "more images than a tile has lanes, primes": ((67, 3, 3, 5), 1, torch.float32, True),
    "as many groups as channels": ((5, 4, 3, 3), 4, torch.float32, True),
    "no weight": ((6, 4, 3, 3), 2, torch.float32, False),
    "one pixel": ((16, 8, 1, 1), 2, torch.float32, True),
    "bfloat16": ((32, 4, 4, 4), 2, torch.bfloat16, True),
    "float16": ((32, 4, 4, 4), 2, torch.float16, True),
    "far from zero": ((32, 4, 9, 9), 2, torch.float32, True),
    "relu": ((16, 4, 9, 9), 2, torch.float32, True),
    "residual and relu, bits that end within a byte": ((13, 4, 3, 11), 2, torch.float32, True),
    "residual and relu, bfloat16": ((16, 4, 4, 4), 2, torch.bfloat16, True),
    "residual, no weight": ((6, 3, 3, 3), 3, torch.float32, False),
    "residual and relu, kept as bfloat16": ((16, 4, 9, 9), 2, torch.float32, True),
}
EPS = 1e-3


def errors(name: str) -> dict[str, float]:
    """Relative errors of y and the gradients."""
    shape, groups, dtype, affine = GROUP_CASES[name]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=generator).to(dtype) + (1000 if name == "far from zero" else 0)
    gy, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    factors = [torch.rand(shape[1], generator=generator) + 0.5 for _ in range(2)] if affine else []
    own = [innermost(x).requires_grad_(), *(each.requires_grad_() for each in factors)]
    own += [innermost(residual).requires_grad_()] if "residual" in name else []
    wide = [each.detach().double().requires_grad_() for each in own]
    more = {"residual": own[-1] if "residual" in name else None, "relu": "relu" in name, "half": "kept" in name}
    y = innermost_group_norm(own[0], groups, *(own[1:3] if affine else (None, None)), EPS, **more)
    expected = F.group_norm(wide[0], groups, *(wide[1:3] if affine else (None, None)), EPS)
    expected = expected + wide[-1] if "residual" in name else expected
    if "relu" in name:
        near = expected.detach().abs() < (1e-5 if dtype == torch.float32 else 1e-2)  # rounded it may have another sign
        assert near.double().mean() < 0.05
        expected = torch.where(torch.where(near, y.detach() > 0, expected > 0), expected, 0)
    assert y.dtype == dtype
    assert y.permute(1, 2, 3, 0).is_contiguous()
    found = torch.autograd.grad(y, own, innermost(gy))
    wanted = torch.autograd.grad(expected, wide, gy.double())
    names = ("x", *(("weight", "bias") if affine else ()), *(("residual",) if "residual" in name else ()))
    result = {"y": relative_error(y.detach(), expected.detach())}
    return result | {n: relative_error(f, w) for n, f, w in zip(names, found, wanted, strict=True)}


if __name__ == "__main__":
    poison_new_tensors()
    json.dump({name: errors(name) for name in GROUP_CASES}, sys.stdout, allow_nan=True)
