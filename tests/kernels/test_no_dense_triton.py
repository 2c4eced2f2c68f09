"""While a client trains and grows weights on the Triton back end, no tensor is as large as a dense weight."""

from typing import Any

import pytest

pytest.importorskip("triton")

from interpreted import run
from no_dense_interpreted import DENSE


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("no_dense_interpreted.py", timeout=400)


@pytest.mark.parametrize("masks", ["vectors", "single weights"])
def test_nothing_is_as_large_as_a_dense_weight(interpreted: dict[str, Any], masks: str) -> None:
    assert interpreted[masks]["tensor"] < DENSE // 2
    assert (interpreted[masks]["changed"] > 0) == (masks == "single weights"), "that round exchanges weights"


def test_a_dense_weight_would_be_seen(interpreted: dict[str, Any]) -> None:
    assert interpreted["dense back end"]["tensor"] >= DENSE
