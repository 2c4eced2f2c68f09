"""Clients with different memory limits: the same plans, peaks and bits in one process and on two ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import test_ranks
from test_ranks import MPIRUN, start

pytestmark = [
    pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')"),
    pytest.mark.timeout(900),
]


def outcome(ranks: int) -> dict[str, Any]:
    done = start(ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_limits_on_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_ranks, "PROGRAM", Path(__file__).parent / "limits_program.py")
    alone, two = outcome(1), outcome(2)
    for one, other in zip(alone["records"], two["records"], strict=True):
        for entry, same in zip(one["plans"], other["plans"], strict=True):
            # What torch makes once in a process, tens of bytes, is made in one client's round or in another's.
            assert abs(entry["peak"] - same.pop("peak")) < 1000
            assert entry == same | {"peak": entry["peak"]}
    assert {**alone, "records": 0} == {**two, "records": 0}
    for record in alone["records"]:
        plans = {(entry["level"], entry["pieces"]) for entry in record["plans"]}
        assert len(plans) >= 3, "the limits ask for different plans"
        assert all(entry["peak"] <= entry["limit"] for entry in record["plans"])
        assert record["incidents"] == []
