"""`fedsparse run --ranks N` gives the records of one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsparse.cli import ranks
from fedsparse.cli.errors import CommandError
from fedsparse.cli.folders import run_folder
from fedsparse.cli.ranks import environment, find_mpirun

CONFIG = """
name = "ranks"
[model]
name = "mlp"
[partition]
clients = 4
[train]
rounds = 2
[method]
name = "fedtiny"
density = 0.2
interval = 1
last = 3
pool = 2
"""
PROGRAM = str(Path(__file__).parent / "cli_program.py")
FAITHFUL = (
    f"import sys, fedsparse.cli.ranks as r; r.PROGRAM = (sys.executable, {PROGRAM!r});"
    "from fedsparse.cli import main; sys.exit(main(sys.argv[1:]))"
)
# Stands for ssh: the same machine under another host's name, with none of this process's variables.
AGENT = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec env -i HOME="$HOME" PATH=/usr/bin:/bin unshare --uts /bin/bash -c "hostname $host; $*"
"""
NAMES_HOSTS = subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0
SAME = ("accuracy", "loss", "train_loss", "bytes_up", "bytes_down", "layer_densities", "mask_change", "clients")


def records(folder: Path) -> list[list[object]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [[json.loads(line)[key] for key in SAME] for line in lines]


def fedsparse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsparse", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=850, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run in one process."""
    folder = tmp_path_factory.mktemp("one-process")
    (folder / "ranks.toml").write_text(CONFIG)
    done = fedsparse("run", str(folder / "ranks.toml"), "--out", str(folder / "run"), "--quiet")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run"


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_three_ranks_write_what_one_process_writes(one: Path, tmp_path: Path) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(CONFIG)
    three = fedsparse(
        "run", str(config), "--out", str(tmp_path / "three"), "--quiet", "--ranks", "3", "--format", "json"
    )
    assert three.returncode == 0, three.stderr[-2000:]
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, tmp_path / "three")]
    assert json.loads(three.stdout) == {**results[1], "folder": str(tmp_path / "three")}
    assert [(result["ranks"], result["lost_ranks"]) for result in results] == [(1, []), (3, [])]
    assert records(one) == records(tmp_path / "three")
    assert (tmp_path / "three" / "report.html").exists()


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_nine_ranks_with_one_killed_in_round_3_complete_and_name_the_loss(tmp_path: Path) -> None:
    config, folder = tmp_path / "ranks.toml", tmp_path / "nine"
    config.write_text(CONFIG.replace("clients = 4", "clients = 12").replace("rounds = 2", "rounds = 5"))
    command = [str(find_mpirun()), "--with-ft", "ulfm", "--bind-to", "none", "-n", "9", sys.executable, PROGRAM]
    nine = subprocess.run(
        [*command, "run", str(config), "--out", str(folder)], capture_output=True, text=True, timeout=850, check=False,
        env={**os.environ, **environment(1), "FEDSPARSE_FAULT": "1:3:train:kill"},
    )  # fmt: skip
    assert nine.returncode == 0, nine.stderr[-2000:]
    assert "\x1b" not in nine.stdout + nine.stderr, "no terminal was there"
    assert [line.split("  ")[0] for line in nine.stderr.splitlines()] == [
        *(f"ranks: round {n}/5" for n in (1, 2, 3)), "rank 1 lost: its process ended",
        *(f"ranks: round {n}/5" for n in (4, 5)),
    ]  # fmt: skip
    assert re.search(r"MPI ranks +│ 9, lost: 1 ", nine.stdout)
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["rounds"], result["ranks"], result["lost_ranks"]) == ("complete", 5, 9, [1])
    incidents = [json.loads(line)["incidents"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [[entry["rank"] for entry in entries] for entries in incidents] == [[], [], [], [1], []]
    page = (folder / "report.html").read_text()
    assert "9, lost: 1" in page
    assert re.search(r"<td>3</td><td>rank 1, client \d+</td><td>lost: its process ended</td>", page)


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_a_lost_rank_is_named_and_a_lost_server_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(CONFIG)
    folder = tmp_path / "run"
    lost = subprocess.run(
        [sys.executable, "-c", FAITHFUL, "run", str(config), "--out", str(folder), "--ranks", "3"],
        capture_output=True, text=True, timeout=850, check=False,
        env={**os.environ, "FEDSPARSE_FAULT": "1:0:train:kill,0:1:update:kill"},
    )  # fmt: skip
    assert lost.returncode == 3
    assert "the server's rank is lost; `fedsparse resume` goes on" in lost.stderr
    assert not (folder / "result.json").exists()
    resumed = fedsparse("resume", str(folder), "--quiet")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    (entry,) = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["incidents"]
    assert (entry["rank"], entry["reason"]) == (1, "lost: its process ended")
    assert "rank 1, client" in (folder / "report.html").read_text()
    assert json.loads((folder / "result.json").read_text())["status"] == "complete"


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
@pytest.mark.skipif(not NAMES_HOSTS, reason="host names of one's own need the rights of root")
def test_ranks_on_two_hosts_give_the_same_records_and_a_rank_stopped_on_the_other_ends_with_the_run(
    one: Path, tmp_path: Path
) -> None:
    """mpirun would wait without end for the stopped rank, whose process rank 0 cannot end from its host."""
    config, hosts, agent = tmp_path / "ranks.toml", tmp_path / "hosts", tmp_path / "agent"
    config.write_text(CONFIG)
    hosts.write_text("nodea slots=2\nnodeb slots=1\n")
    agent.write_text(AGENT)
    agent.chmod(0o755)
    two = subprocess.run(
        [sys.executable, "-c", FAITHFUL, "run", str(config), "--out", str(tmp_path / "two"), "--quiet", "--ranks", "3",
         "--hostfile", str(hosts), "--set", "failures.client_deadline=20"],
        capture_output=True, text=True, timeout=850, check=False,
        env={**os.environ, "PRTE_MCA_plm_ssh_agent": str(agent), "FEDSPARSE_FAULT": "2:1:train:stop"},
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-2000:]
    assert records(one) == records(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "result.json").read_text())["lost_ranks"] == [2]
    (entry,) = json.loads((tmp_path / "two" / "rounds.jsonl").read_text().splitlines()[1])["incidents"]
    assert (entry["rank"], entry["reason"]) == (2, "lost: silent for over 20 s")


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_ctrl_c_ends_a_run_on_ranks_with_what_is_done(tmp_path: Path) -> None:
    """The terminal's Ctrl-C goes to the whole group of the command."""
    config, folder = tmp_path / "ranks.toml", tmp_path / "run"
    config.write_text(CONFIG.replace("rounds = 2", "rounds = 100000"))
    command = [sys.executable, "-m", "fedsparse", "run", str(config), "--out", str(folder), "--ranks", "2"]
    lines = folder / "rounds.jsonl"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            until = time.monotonic() + 400
            while not (lines.exists() and lines.read_text().count("\n") >= 2):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            begun = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            out, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 130, errors[-2000:]
    assert time.monotonic() - begun < 100
    assert "interrupted after" in out
    assert "Traceback" not in errors
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["rounds"]) == ("interrupted", lines.read_text().count("\n"))
    assert (folder / "report.html").exists()


WAITS = "import signal, time; print('up', flush=True); time.sleep(60)"
HEARS = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: print('once', flush=True)); " + WAITS


@pytest.mark.parametrize(
    ("program", "signals", "code"),
    [
        (WAITS, [signal.SIGTERM], -signal.SIGUSR1),
        (HEARS, [signal.SIGINT, signal.SIGINT], -signal.SIGTERM),
        (HEARS, [signal.SIGTERM, signal.SIGINT], -signal.SIGTERM),
    ],
)
def test_mpirun_is_told_to_pass_the_first_signal_on_and_to_end_at_the_second(
    program: str, signals: list[signal.Signals], code: int
) -> None:
    supervising = "import sys, fedsparse.cli.ranks as r; print(r.supervise([sys.executable, '-c', sys.argv[1]], None), flush=True)"
    command = [sys.executable, "-c", supervising, program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for sent, what in enumerate(signals):
            if sent:
                assert process.stdout.readline() == "once\n"
            os.killpg(process.pid, what)
        assert process.stdout.readline() == f"({code}, True)\n"


def test_a_run_interrupted_before_it_began_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "find_mpirun", lambda: "/bin/true")
    monkeypatch.setattr(ranks, "supervise", lambda *_: (1, True))
    folder = run_folder(tmp_path / "run", "x", 0)
    with pytest.raises(CommandError, match="interrupted before the run began") as error:
        ranks.run_on_ranks(2, None, [], folder, 1)
    assert error.value.code == 130
    assert not folder.path.exists()


def test_a_run_that_mpi_ended_is_no_success_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MPICH ends it when a rank is killed; and mpirun's success without a result is none."""
    monkeypatch.setattr(ranks, "find_mpirun", lambda: "/bin/true")
    folder = run_folder(tmp_path / "run", "x", 0)
    for code in (9, 137, 0):
        monkeypatch.setattr(ranks, "supervise", lambda *_, code=code: (code, False))
        with pytest.raises(
            CommandError, match=rf"exit code {code}\).*`fedsparse resume {folder.path}` goes on"
        ) as error:
            ranks.run_on_ranks(2, None, [], folder, 1)
        assert error.value.code == 3
    assert folder.path.exists()


def test_without_mpirun_one_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(CONFIG)
    program = (
        "import sys, fedsparse.cli.ranks as r; r.find_mpirun = lambda: None;"
        "from fedsparse.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(config), "--ranks", "2"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "fedsparse[mpi]" in done.stderr
    assert not (tmp_path / "runs").exists()
