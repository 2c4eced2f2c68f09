"""topk and grow_scores on the Triton back end, in the interpreter: the places of the reference, bit for bit."""

import pytest

pytest.importorskip("triton")

from interpreted import run
from selection_interpreted import FLOATS, GROW_RUNS, TOPK_RUNS


@pytest.fixture(scope="module")
def interpreted() -> dict[str, bool]:
    return run("selection_interpreted.py")


@pytest.mark.parametrize(("name", "dtype", "programs"), TOPK_RUNS)
def test_topk(interpreted: dict[str, bool], name: str, dtype: str, programs: int) -> None:
    assert interpreted[f"topk/{name}/{dtype}/{programs}"]


def test_topk_by_the_name_of_the_back_end(interpreted: dict[str, bool]) -> None:
    assert interpreted["public"]


@pytest.mark.parametrize(("name", "dtype"), GROW_RUNS)
def test_growth_merges_a_tile_into_the_best_so_far(interpreted: dict[str, bool], name: str, dtype: str) -> None:
    assert interpreted[f"grow/{name}/{dtype}"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_in_any_tile_is_refused_when_the_search_ends(interpreted: dict[str, bool], dtype: str) -> None:
    assert interpreted[f"nan/{dtype}"]
