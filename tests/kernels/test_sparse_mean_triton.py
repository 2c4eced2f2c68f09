"""Sums of reports on the Triton back end, in the interpreter: the bits of the reference."""

from typing import Any

import pytest

pytest.importorskip("triton")

from interpreted import run
from sparse_mean_interpreted import CASES


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("sparse_mean_interpreted.py")


@pytest.mark.parametrize("name", [*CASES, "bfloat16"])
def test_sums_are_those_of_the_reference(interpreted: dict[str, Any], name: str) -> None:
    assert interpreted[name] is True


def test_too_many_values_are_refused(interpreted: dict[str, Any]) -> None:
    assert "1 bits are set, but there are 2 values" in interpreted["refused"]
