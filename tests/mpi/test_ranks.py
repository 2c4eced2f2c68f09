"""One process and several MPI ranks give the same bits; whatever befalls ranks costs time, not the run.

Starting ranks is what takes long here, so a job does several runs, and several ranks fail in one.
"""

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
# What is ordered, and where what is said of it must stand: (list, words of its one entry), or nothing at all.
BORNE = {
    "1:1:train:raise": ("dropped", "RuntimeError: a fault was ordered"),
    "1:1:report:garbage": ("rejected", "magic"),
    "2:1:report:nan": ("rejected", "not finite"),
    "1:2:report:wrong-shape": ("rejected", "size is 1"),
    "2:2:report:stale": ("rejected", "in round 1, not report"),
    "1:1:answer:duplicate": ("incidents", "sent it twice"),
    "2:1:answer:garbage": ("dropped", "cannot be read"),
}
SLOW = "1:1:train:slow=6"
METHODS = ("fedavg", "feddst", "fedmef", "fedrts", "fedsgc", "fedtiny", "prunefl", "ssfl")
LOCAL = ["local ", *(f"local {method} " for method in METHODS)]
"""Runs in which each rank sums: the one that the others here are, and a run of each method."""

# Of a job, at most; on two idle cores the one of 9 ranks takes a minute, nearly all of it imports.
WAIT = 850

pytestmark = [
    pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')"),
    pytest.mark.timeout(900),
]


def start(ranks: int, *faults: str, ulfm: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *faults]
    if ranks > 1:
        how = ["--with-ft", "ulfm"] if ulfm else []
        command = [str(MPIRUN), *how, "--bind-to", "none", "-n", str(ranks), *command]
    return subprocess.run(
        command, env={**os.environ, **ALLOWED, **environment}, capture_output=True, text=True, timeout=WAIT, check=False
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        assert row["named"] == row["lost"], "every lost rank is an incident, and none is twice"
    return {row["fault"]: row for row in rows}


@cache
def alone() -> dict[str, dict]:
    done = start(1, "", *LOCAL)
    assert done.returncode == 0, done.stderr[-2000:]
    return outcomes(done)


@cache
def two() -> subprocess.CompletedProcess[str]:
    return start(2, "", *LOCAL, "1:1:train:kill")


@cache
def two_at_work() -> subprocess.CompletedProcess[str]:
    return start(2, "", "1:1:train:kill", SERVER_WORKS="1")


@cache
def three() -> dict[str, dict]:
    done = start(3, "", *LOCAL, *BORNE, *(f"local {fault}" for fault in BORNE), SLOW)
    assert done.returncode == 0, done.stderr[-2000:]
    return outcomes(done)


@cache
def nine() -> subprocess.CompletedProcess[str]:
    return start(9, "", *LOCAL, "1:3:train:kill")


def same_bits(found: dict, argument: str = "") -> bool:
    wanted = alone()[argument]
    return (found["hash"], found["metrics"]) == (wanted["hash"], wanted["metrics"])


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_give_the_bits_of_one_process(ranks: int) -> None:
    job = three() if ranks == 3 else outcomes(two() if ranks == 2 else nine())
    assert same_bits(job[""])
    assert job[""]["dropped"] == job[""]["rejected"] == job[""]["incidents"] == []


@pytest.mark.parametrize("argument", LOCAL)
@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_sums_on_the_ranks_have_the_bits_of_one_process(ranks: int, argument: str) -> None:
    job = three() if ranks == 3 else outcomes(two() if ranks == 2 else nine())
    assert same_bits(job[argument], argument)
    assert job[argument]["dropped"] == job[argument]["rejected"] == job[argument]["incidents"] == []


@pytest.mark.parametrize("fault", BORNE)
def test_a_fault_costs_a_sum_on_the_ranks_what_it_costs_rank_0s(fault: str) -> None:
    found, wanted = three()[f"local {fault}"], three()[fault]
    for what in ("hash", "metrics", "rejected", "dropped", "incidents", "lost"):
        assert found[what] == wanted[what], what
    assert found["seconds"] < 60


def test_ranks_lost_with_their_sums_lose_nothing_but_time() -> None:
    faults = "local 1:0:sum:kill,2:1:sum:exit0,3:2:sum:stop,4:3:train:kill"
    done = start(6, faults, DEADLINE="20")
    assert done.returncode == 0, done.stderr[-2000:]
    found = outcomes(done)[faults]
    assert same_bits(found, "local ")
    assert found["lost"] == [1, 2, 3, 4]
    assert [(round, client is None) for round, client, _ in found["incidents"]] == [
        (0, True),
        (1, True),
        (2, True),
        (3, False),
    ]
    assert found["rejected"] == found["dropped"] == []
    assert found["seconds"] < 100, "of which 20 wait for the stopped rank"


def test_nine_ranks_with_one_killed_in_round_3_end_well() -> None:
    assert nine().returncode == 0, nine().stderr[-2000:]
    found = outcomes(nine())["1:3:train:kill"]
    assert same_bits(found), "its client was handed to another rank"
    assert found["lost"] == [1]
    assert [(round, why) for round, _, why in found["incidents"]] == [(3, "lost: its process ended")]
    assert found["seconds"] < 100


@pytest.mark.parametrize("fault", BORNE)
def test_a_fault_that_costs_one_report_is_named_and_the_run_goes_on(fault: str) -> None:
    found, (where, words) = three()[fault], BORNE[fault]
    round = int(fault.split(":")[1])
    for what in ("rejected", "dropped", "incidents"):
        entries = found[what]
        assert len(entries) == (what == where), (what, entries)
        assert all(at == round and words in why for at, _, why in entries)
    assert same_bits(found) == (where == "incidents")
    assert len(found["metrics"]) == 4
    assert found["lost"] == []
    assert found["seconds"] < 60


def test_a_round_does_not_wait_beyond_its_deadline() -> None:
    found = three()[SLOW]
    assert {round for round, _, _ in found["dropped"]} == {1}
    assert {why for _, _, why in found["dropped"]} == {"not done by the round's deadline"}
    assert all("answered too late" in why for _, _, why in found["incidents"])
    assert len(found["metrics"]) == 4
    assert found["lost"] == ([] if found["incidents"] else [1]), "ended, where the run was over before it answered"
    assert found["seconds"] < 60


def test_killed_stopped_and_vanished_ranks_lose_nothing_but_time() -> None:
    faults = "2:1:train:kill,3:2:report:stop,4:3:answer:exit0"
    done = start(5, faults, DEADLINE="20")
    assert done.returncode == 0, done.stderr[-2000:]
    found = outcomes(done)[faults]
    assert same_bits(found)
    assert found["lost"] == [2, 3, 4]
    assert [round for round, _, _ in found["incidents"]] == [1, 2, 3]
    assert "silent for over 20 s" in found["incidents"][1][2]
    assert found["seconds"] < 100, "of which 20 wait for the stopped rank"


def test_when_every_worker_is_lost_the_run_ends_with_an_error() -> None:
    assert two().returncode != 0
    assert "no worker rank is left" in two().stderr
    assert "1:1:train:kill" not in outcomes(two())


@pytest.mark.parametrize("fault", ["", "1:1:train:kill"])
def test_a_server_that_works_too_gives_the_same_bits_and_goes_on_alone(fault: str) -> None:
    assert two_at_work().returncode == 0, two_at_work().stderr[-2000:]
    found = outcomes(two_at_work())[fault]
    assert same_bits(found)
    assert found["lost"] == ([1] if fault else [])
    assert found["dropped"] == found["rejected"] == []
    # 4 rounds of 6 clients; in the first rank 1 has at least one, and after its death in the second none.
    assert found["own"] >= (6 + 6 if fault else 1)


def test_without_ulfm_one_lost_rank_of_nine_ends_the_run_which_resumes_to_the_same_bits(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = start(9, "2:3:train:kill", ulfm=False, OUT=str(tmp_path))
    assert done.returncode == 137, "mpirun's code for a rank that was killed"
    assert time.monotonic() - begun < 400, "nearly all of it imports"
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoints" / "000003.json").exists()
    resumed = start(1, "", OUT=str(tmp_path))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert same_bits(outcomes(resumed)[""])
    assert (tmp_path / "result.json").exists()
