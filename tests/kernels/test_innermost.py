"""A residual network whose activations keep their images innermost: no copy between layers, the same numbers."""

from typing import Any

import pytest

pytest.importorskip("triton")

from innermost_interpreted import TAILS
from interpreted import run

NORMS = ("batch", "group")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("innermost_interpreted.py")


@pytest.fixture(scope="module")
def network(interpreted: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = interpreted["network"]
    return found


def test_output_gradients_and_statistics(network: dict[str, Any]) -> None:
    """In float32 against float64; the reference's convolutions and torch's batch norm."""
    assert len(network["errors"]) == 2 + 10 + 4
    for name, error in network["errors"].items():
        assert error <= 2e-5, f"{name}: {error:.2e}"


def test_only_the_images_are_copied_on_the_way_forward(network: dict[str, Any]) -> None:
    """The stem's input has one layout, the block's convolutions get what they take."""
    assert network["forward copies"] == 1


def test_the_way_back_copies_only_what_comes_from_the_mean(network: dict[str, Any]) -> None:
    """Of 3 forward, 5 and 3 backward conversions, and 6 more forward: the images three times, the stem's weights."""
    assert network["calls"] >= 3 + 5 + 3
    assert network["copies"] <= 3 + 1 + 2


def test_the_models_output_is_an_ordinary_tensor(network: dict[str, Any]) -> None:
    assert network["output type"] == "Tensor"
    assert network["whole type"] == "Tensor"


def test_explain_says_what_runs_in_one_kernel(network: dict[str, Any]) -> None:
    """The stem's output goes to a convolution; the block's to a norm with ReLU, and with the residual too."""
    stem, first, second, _ = network["explained"]
    assert "kernel" not in stem
    assert "images innermost where Triton kernels run, norm + ReLU in one kernel" in first
    assert "images innermost where Triton kernels run, norm + residual + ReLU in one kernel" in second


def test_the_state_keeps_its_names(network: dict[str, Any]) -> None:
    assert network["state unchanged"]


def test_a_level_keeps_the_layout_and_the_bits(interpreted: dict[str, Any]) -> None:
    """Of the inputs that "lossless" may pack one is a ReLU's: it is packed as it stands; nothing is copied for it."""
    found = interpreted["levels"]
    assert all(found["same"])
    assert found["innermost"] == [True, True]
    assert found["copies"]["lossless"] == found["copies"]["bf16"] == found["copies"]["dense"]


def test_norms_keep_their_inputs_as_bfloat16_where_the_level_says_so(interpreted: dict[str, Any]) -> None:
    """The result's bits stay; gradients from the second norm back are off by less than 2 %; what is said is done."""
    output, *rest = interpreted["levels"]["half"]
    assert output == 0
    assert all(error < 0.02 for error in rest)
    assert any(rest)
    _, first, second, _ = interpreted["levels"]["explained"]
    assert "activations bf16" in first
    assert "a norm keeps its input as it is" not in first + second


def test_a_relu_with_bits_keeps_the_layout(interpreted: dict[str, Any]) -> None:
    assert interpreted["relu"] == ["Innermost", True]


FUSED = {
    "relu": ["norm + ReLU"],
    "relu in place": ["norm + ReLU"],
    "sum and relu": ["norm + residual + ReLU"],
    "the residual first": ["norm + residual + ReLU"],
    "sum in place": ["norm + residual + ReLU"],
    "sum alone": ["norm + residual"],
    "an ordinary residual": ["norm + residual + ReLU"],
    "two norms": ["norm + residual + ReLU"],
    "used twice": ["norm", "norm + ReLU"],
    "in place and used": ["norm + ReLU"],
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("norm", NORMS)
def test_what_follows_a_norm(interpreted: dict[str, Any], norm: str, name: str) -> None:
    """Result, every gradient and the statistics against float64; what is fused is, all else runs on the norm."""
    found = interpreted[norm][name]
    assert found["error"] <= 2e-6
    assert found["fused"] == FUSED.get(name, ["norm"])
    assert found["type"] == ("Tensor" if name == "joined" else "Innermost")  # torch.cat has a layout of its own


def test_an_input_that_changes_meanwhile_is_refused(interpreted: dict[str, Any]) -> None:
    assert "changed in place" in interpreted["changed"]
