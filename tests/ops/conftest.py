from collections.abc import Iterator

import pytest
import torch
from op_cases import isas, tile_kinds

import fedsparse.ops  # noqa: F401  (loads the libraries)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN (or the largest integer), so that an element a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.ops.fedsparse.set_isa(request.param)
    yield request.param
    torch.ops.fedsparse.set_isa("")


@pytest.fixture(params=tile_kinds())
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.ops.fedsparse.set_tiles(request.param)
    yield request.param
    torch.ops.fedsparse.set_tiles("")
