"""ReLU with its bits on the Triton back end, in the interpreter: output, gradients and bits of the reference."""

from typing import Any

import pytest

pytest.importorskip("triton")

from interpreted import run
from relu_interpreted import RUNS


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("relu_interpreted.py")


@pytest.mark.parametrize(("name", "dtype", "limit"), RUNS)
def test_as_the_reference(interpreted: dict[str, Any], name: str, dtype: str, limit: str) -> None:
    assert interpreted[f"{name}/{dtype}/{limit}"] is True


def test_a_bit_an_element_is_kept(interpreted: dict[str, Any]) -> None:
    assert interpreted["kept"] == [13 * 40 // 8, True]
