"""Norms of images that stand innermost, in the interpreter, against torch's in float64."""

import pytest
import torch

pytest.importorskip("triton")

from group_norm_interpreted import GROUP_CASES
from interpreted import run
from norm_interpreted import CASES, innermost

from fedsparse.ops.innermost_group_norm import innermost_group_norm
from fedsparse.ops.innermost_norm import stands_innermost

# Of y; a half type's rounding goes into every sum of the gradients. 1000 loses 2^10 of float32's 2^24 in x itself.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def limit_of(name: str, dtype: torch.dtype, what: str) -> float:
    """What is kept as bfloat16 goes into the gradients of x and of weight, by way of (x - mean), and into no other."""
    if "kept as" in name and what in ("x", "weight"):
        return 5e-3
    return 1e-3 if name == "far from zero" else TOLERANCE[dtype]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return run("norm_interpreted.py")


@pytest.mark.parametrize("name", CASES)
def test_against_float64(interpreted: dict[str, dict[str, float]], name: str) -> None:
    _, dtype, _, affine = CASES[name]
    found = interpreted[name]
    operands = {"x", *(("weight", "bias") if affine else ()), *(("residual",) if "residual" in name else ())}
    assert set(found) == {"y", "running mean", "variance"} | operands
    for what, error in found.items():
        assert error <= limit_of(name, dtype, what), f"{what}: {error:.2e}"


@pytest.fixture(scope="module")
def of_groups() -> dict[str, dict[str, float]]:
    return run("group_norm_interpreted.py")


@pytest.mark.parametrize("name", GROUP_CASES)
def test_group_norm_against_float64(of_groups: dict[str, dict[str, float]], name: str) -> None:
    _, _, dtype, affine = GROUP_CASES[name]
    found = of_groups[name]
    operands = {"x", *(("weight", "bias") if affine else ()), *(("residual",) if "residual" in name else ())}
    assert set(found) == {"y"} | operands
    for what, error in found.items():
        assert error <= limit_of(name, dtype, what), f"{what}: {error:.2e}"


@pytest.mark.parametrize(
    ("shape", "groups", "said"), [((4, 6, 2, 2), 4, "must divide"), ((4, 6, 1, 1), 6, "one number")]
)
def test_group_norm_refuses(shape: tuple[int, ...], groups: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        innermost_group_norm(torch.randn(shape), groups, None, None, 1e-5)


def test_which_tensors_stand_innermost() -> None:
    x = torch.randn(4, 3, 2, 5)
    assert stands_innermost(innermost(x))
    assert not stands_innermost(x)
    assert not stands_innermost(x.contiguous(memory_format=torch.channels_last))
    assert not stands_innermost(innermost(torch.randn(1, 3, 2, 5))), "one image stands in every layout"
    assert not stands_innermost(innermost(torch.randn(32, 3, 2, 5))[:17]), "gaps"
