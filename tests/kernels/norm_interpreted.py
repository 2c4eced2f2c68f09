"""Runs `ops.innermost_norm` under Triton's interpreter against torch's batch norm in float64; prints errors as JSON.

Started by test_norm_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys

import torch
import torch.nn.functional as F
from spmm_interpreted import poison_new_tensors, relative_error
from torch import Tensor

from fedsparse.ops.innermost_norm import innermost_norm

# (B, C, H, W), dtype of x, training, affine: why. "residual", "relu", "kept as bfloat16" in the name: with them
CASES = {
    "several parts of a row": ((32, 3, 9, 17), torch.float32, True, True),
    "more channels than a program joins": ((16, 70, 2, 1), torch.float32, True, True),
    "shorter than a block, primes": ((5, 7, 3, 11), torch.float32, True, True),
    "given statistics": ((5, 4, 3, 3), torch.float32, False, True),
    "no weight": ((6, 4, 3, 3), torch.float32, True, False),
    "bfloat16": ((32, 5, 4, 4), torch.bfloat16, True, True),
    "float16": ((32, 5, 4, 4), torch.float16, True, True),
    "far from zero": ((32, 4, 9, 9), torch.float32, True, True),
    "relu, several parts of a row": ((32, 3, 9, 9), torch.float32, True, True),
    "residual and relu, bits that end within a byte": ((5, 4, 3, 11), torch.float32, True, True),
    "residual and relu, bfloat16": ((16, 3, 4, 4), torch.bfloat16, True, True),
    "residual, no weight": ((6, 3, 3, 3), torch.float32, True, False),
    "residual and relu, given statistics": ((5, 4, 3, 3), torch.float32, False, True),
    "residual and relu, kept as bfloat16": ((32, 3, 9, 9), torch.float32, True, True),
}
MOMENTUM, EPS = 0.3, 1e-3


def innermost(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def errors(name: str) -> dict[str, float]:
    """Relative errors of y, the running statistics and the gradients."""
    shape, dtype, training, affine = CASES[name]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=generator).to(dtype)
    if name == "far from zero":
        x += 1000
    gy, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    weight, bias, mean, variance = (torch.rand(shape[1], generator=generator) + 0.5 for _ in range(4))
    own = [
        innermost(x).requires_grad_(),
        *((weight.clone().requires_grad_(), bias.clone().requires_grad_()) if affine else ()),
        *((innermost(residual).requires_grad_(),) if "residual" in name else ()),
    ]
    wide = [each.detach().double().requires_grad_() for each in own]
    running = [mean.clone(), variance.clone()]
    exact = [mean.double(), variance.double()]
    affine_of = lambda them: them[1:3] if affine else (None, None)  # noqa: E731
    more = {"residual": own[-1] if "residual" in name else None, "relu": "relu" in name, "half": "kept" in name}
    y = innermost_norm(own[0], *running, *affine_of(own), training, MOMENTUM, EPS, **more)
    expected = F.batch_norm(wide[0], *exact, *affine_of(wide), training, MOMENTUM, EPS)
    if "residual" in name:
        expected = expected + wide[-1]
    if "relu" in name:
        near = expected.detach().abs() < (1e-5 if dtype == torch.float32 else 1e-2)  # rounded it may have another sign
        assert near.double().mean() < 0.05
        expected = torch.where(torch.where(near, y.detach() > 0, expected > 0), expected, 0)
    assert y.dtype == dtype
    assert y.permute(1, 2, 3, 0).is_contiguous()
    found = torch.autograd.grad(y, own, innermost(gy))
    wanted = torch.autograd.grad(expected, wide, gy.double())
    result = {"y": relative_error(y.detach(), expected.detach())}
    names = ("x", *(("weight", "bias") if affine else ()), *(("residual",) if "residual" in name else ()))
    result |= {"running mean": relative_error(running[0], exact[0]), "variance": relative_error(running[1], exact[1])}
    return result | {n: relative_error(f, w) for n, f, w in zip(names, found, wanted, strict=True)}


if __name__ == "__main__":
    poison_new_tensors()
    json.dump({name: errors(name) for name in CASES}, sys.stdout, allow_nan=True)
