"""One process and several MPI ranks give the same bits; killed, stopped and failing ranks cost time, not the run."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "rank_program.py"
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1",
}

pytestmark = pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")


def start(ranks: int, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM)]
    if ranks > 1:
        command = [str(MPIRUN), "--with-ft", "ulfm", "-n", str(ranks), *command]
    return subprocess.run(
        command, env={**os.environ, **ALLOWED, **environment}, capture_output=True, text=True, timeout=200, check=False
    )


def outcome(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@cache
def alone() -> dict:
    return outcome(start(1))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_bits_of_one_process(ranks: int) -> None:
    assert outcome(start(ranks)) == alone()


@pytest.mark.parametrize("kind", ["kill", "stop", "exit0"])
def test_a_lost_rank_loses_nothing_but_time(kind: str) -> None:
    begun = time.monotonic()
    found = outcome(start(3, FAULT=f"2:1:{kind}", DEADLINE="15"))
    assert found["lost"] == [2]
    assert found["hash"] == alone()["hash"], "the client was handed to another rank"
    assert time.monotonic() - begun < 150


def test_a_client_that_raises_is_left_out_and_named() -> None:
    found = outcome(start(2, FAULT="-1:1:raise"))
    reasons = [r["reason"] for round in found["rejected"] for r in round]
    assert reasons == ["RuntimeError: this client's sensor is broken"] or reasons == []
    assert found["lost"] == []


def test_when_every_worker_is_lost_the_run_ends_with_an_error() -> None:
    done = start(2, FAULT="1:1:kill", DEADLINE="15")
    assert done.returncode != 0
    assert "no worker rank is left" in done.stderr
