"""Packed activations on the Triton back end, in the interpreter: the bits of the reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from packing_interpreted import RUNS


@pytest.fixture(scope="module")
def interpreted() -> dict[str, bool]:
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("triton's interpreter fails on loops with run-time bounds under numpy >= 2.4")
    script = Path(__file__).with_name("packing_interpreted.py")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "dtype", "programs"), RUNS)
def test_bits_values_and_starts_are_those_of_the_reference(
    interpreted: dict[str, bool], name: str, dtype: str, programs: int
) -> None:
    assert interpreted[f"{name}/{dtype}/{programs}"]


def test_by_the_name_of_the_back_end(interpreted: dict[str, bool]) -> None:
    assert interpreted["public"]
