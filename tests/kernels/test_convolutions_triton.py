"""The Triton kernels of convolutions against float64, in the interpreter."""

import pytest

pytest.importorskip("triton")

from convolutions_interpreted import CASES, RUNS
from fedsparse.kernels.addresses import split
from interpreted import run

# The interpreter takes a minute or two of a free core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Half types carry the rounding of the result: 2^-11 and 2^-8, a third of it in the mean.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 6e-3}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return run("convolutions_interpreted.py", timeout=800)


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_against_float64(interpreted: dict[str, dict[str, float]], name: str, dtype: str) -> None:
    found = interpreted[f"{name}/{dtype}"]
    kernels = {product.split()[0] for product in found}
    assert kernels == ({"strip"} if CASES[name].V > 1 and dtype != "float64" else {"direct"})
    assert len(found) == 3
    for product, error in found.items():
        assert error <= TOLERANCE[dtype], f"{product}: {error:.2e}"


@pytest.mark.parametrize("tiles", [1, 3, 4, 5, 100, 4096])
@pytest.mark.parametrize("programs", [1, 7, 1000, 5000])
def test_splits_cover_every_tile_once(tiles: int, programs: int) -> None:
    """The parts hold all tiles, no part is empty, and there are no more than fill a GPU."""
    splits, steps = split(tiles, programs)
    assert splits * steps >= tiles
    assert (splits - 1) * steps < tiles
    assert splits == 1 or splits * programs <= 2 * 1024
