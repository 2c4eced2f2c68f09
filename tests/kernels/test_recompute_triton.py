"""The level "recompute" between Triton convolutions, in the interpreter: the bits of "dense", fewer bytes."""

from typing import Any

import pytest

pytest.importorskip("triton")

from interpreted import run
from recompute_interpreted import BATCH, CHANNELS, HIGH, WIDE

WHOLE = 4 * BATCH * CHANNELS * HIGH * WIDE
"""Bytes of an activation of the stem and of the first block; of one behind the stride of 2 a quarter."""
BEHIND = WHOLE // 4


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    found: dict[str, Any] = run("recompute_interpreted.py", timeout=400)
    return found


@pytest.mark.parametrize("case", ["batch", "group", "autocast", "mixed"])
def test_bits_are_those_of_a_step_that_keeps_all(interpreted: dict[str, Any], case: str) -> None:
    """Loss, gradients of 6 convolutions, their norms and the classifier, statistics; by layers of several levels too."""
    same = interpreted[case]["same"]
    assert len(same) > 1 + 6 + 1 + 12 + 2
    assert all(same)


@pytest.mark.parametrize(("case", "width"), [("batch", 4), ("group", 4), ("autocast", 2)])
def test_of_two_norms_inputs_in_turn_one_is_kept(interpreted: dict[str, Any], case: str, width: int) -> None:
    """Dense keeps all: inputs of the norms of stem, a1, a2 | b1, b2, down, and of the convolutions a1, a2, b1 | b2.

    The stem's output is made again from the images. So a1's input takes a convolution, and a1's output is kept; a2's
    is made from that. b1 and down read what a2 and the stem make again: both their outputs are kept; b2's is made again.
    """
    found = interpreted[case]
    saved = (3 + 3 - 1) * WHOLE + (3 + 1 - 2) * BEHIND
    assert found["dense"].get("packed", 0) == found["kept"].get("packed", 0) == 0
    floats = [sum(found[side].get(kind, 0) for kind in ("activations", "bfloat16")) for side in ("dense", "kept")]
    assert floats[0] - floats[1] == saved * width // 4


@pytest.mark.parametrize("case", ["batch", "group", "autocast"])
def test_three_convolutions_run_again(interpreted: dict[str, Any], case: str) -> None:
    """Those of the stem, a2 and b2, each once."""
    assert interpreted[case]["convolutions"] == 3


def test_a_second_backward_pass_has_the_same_bits(interpreted: dict[str, Any]) -> None:
    assert interpreted["twice"][0]


def test_a_norms_bias_changed_before_the_backward_pass_is_refused(interpreted: dict[str, Any]) -> None:
    """No backward pass needs it but that of a tensor that is made again."""
    assert "changed in place" in interpreted["twice"][1]


def test_explain_says_that_it_is_done(interpreted: dict[str, Any]) -> None:
    *layers, _ = interpreted["batch"]["explained"]
    assert len(layers) == 6
    for line in layers:
        assert "activations recompute" in line
        assert "lossless" not in line
