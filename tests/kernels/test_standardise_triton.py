"""Standardised weights on the Triton back end, in the interpreter, against the reference in float64."""

import pytest

pytest.importorskip("triton")

from interpreted import run
from standardise_interpreted import RUNS

TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 1e-2}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    return run("standardise_interpreted.py")


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_result_and_gradients(interpreted: dict[str, list[float]], name: str, dtype: str) -> None:
    found = interpreted[f"{name}/{dtype}"]
    assert len(found) == 3
    for error in found:
        assert error <= TOLERANCE[dtype]
