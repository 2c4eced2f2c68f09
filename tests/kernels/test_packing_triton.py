"""Packed activations on the Triton back end, in the interpreter: the bits of the reference."""

import pytest

pytest.importorskip("triton")

from interpreted import run
from packing_interpreted import RUNS


@pytest.fixture(scope="module")
def interpreted() -> dict[str, bool]:
    return run("packing_interpreted.py")


@pytest.mark.parametrize(("name", "dtype", "programs"), RUNS)
def test_bits_values_and_starts_are_those_of_the_reference(
    interpreted: dict[str, bool], name: str, dtype: str, programs: int
) -> None:
    assert interpreted[f"{name}/{dtype}/{programs}"]


def test_by_the_name_of_the_back_end(interpreted: dict[str, bool]) -> None:
    assert interpreted["public"]
