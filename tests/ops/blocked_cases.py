"""What the tests of blocked ops share: batches with their reasons, and poisoned lanes."""

import pytest
import torch
from torch import Tensor

from fedsparse.ops.blocked import PRODUCT_LANES, reference_from_blocked, reference_to_blocked

BATCHES = [
    pytest.param(1, id="one image"),
    pytest.param(3, id="less than a block"),
    pytest.param(16, id="full blocks"),
    pytest.param(17, id="one image in the last block"),
    pytest.param(64, id="a usual batch"),
]


def poisoned(x: Tensor) -> Tensor:
    """x [B, C, H, W] in blocks, with NaN in every lane that has no image."""
    blocks = reference_to_blocked(x.detach())
    used = x.shape[0] % PRODUCT_LANES[x.dtype]
    if used:
        blocks[-1, ..., used:] = float("nan")
    return blocks


def plain(blocks: Tensor, batch: int) -> Tensor:
    """The true images, [B, C, H, W]."""
    return reference_from_blocked(blocks, batch)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, equal in every dtype up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor, name: str = "") -> None:
    """Within the rounding of its dtype of the float64 tensor, relative to the largest entry."""
    assert found.shape == expected.shape, name
    assert bool(found.isfinite().all()), name
    if found.numel():
        relative = 4e-6 if found.dtype == torch.float32 else 2e-14
        assert float((found.double() - expected).abs().max()) <= relative * max(1.0, float(expected.abs().max())), name
