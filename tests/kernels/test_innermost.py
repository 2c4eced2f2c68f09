"""A residual network whose activations keep their images innermost: no copy between layers, the same numbers."""

from typing import Any

import pytest

pytest.importorskip("triton")

from interpreted import run


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("innermost_interpreted.py")


def test_output_gradients_and_statistics(interpreted: dict[str, Any]) -> None:
    """In float32 against float64; the reference's convolutions and torch's batch norm."""
    assert len(interpreted["errors"]) == 1 + 10 + 4
    for name, error in interpreted["errors"].items():
        assert error <= 2e-5, f"{name}: {error:.2e}"


def test_only_the_images_are_copied_on_the_way_forward(interpreted: dict[str, Any]) -> None:
    """The stem's input has one layout, the block's convolutions get what they take."""
    assert interpreted["norms"] == 2 * 2
    assert interpreted["forward copies"] == 1


def test_the_way_back_copies_only_what_comes_from_the_mean(interpreted: dict[str, Any]) -> None:
    """Of 3 forward, 5 and 3 backward conversions, and 3 more forward: the images twice and for the stem's weights."""
    assert interpreted["calls"] >= 3 + 5 + 3
    assert interpreted["copies"] <= 2 + 1 + 2


def test_the_models_output_is_an_ordinary_tensor(interpreted: dict[str, Any]) -> None:
    assert interpreted["output type"] == "Tensor"
    assert interpreted["whole type"] == "Tensor"
