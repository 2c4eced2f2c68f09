"""topk and grow_scores on the Triton back end, in the interpreter: the places of the reference, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from selection_interpreted import FLOATS, GROW_RUNS, TOPK_RUNS


@pytest.fixture(scope="module")
def interpreted() -> dict[str, bool]:
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("triton's interpreter fails on loops with run-time bounds under numpy >= 2.4")
    script = Path(__file__).with_name("selection_interpreted.py")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "dtype", "programs"), TOPK_RUNS)
def test_topk(interpreted: dict[str, bool], name: str, dtype: str, programs: int) -> None:
    assert interpreted[f"topk/{name}/{dtype}/{programs}"]


@pytest.mark.parametrize(("name", "dtype"), GROW_RUNS)
def test_growth_merges_a_tile_into_the_best_so_far(interpreted: dict[str, bool], name: str, dtype: str) -> None:
    assert interpreted[f"grow/{name}/{dtype}"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_in_any_tile_is_refused_when_the_search_ends(interpreted: dict[str, bool], dtype: str) -> None:
    assert interpreted[f"nan/{dtype}"]
