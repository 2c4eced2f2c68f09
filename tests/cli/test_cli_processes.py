"""Real runs in processes of their own: complete, interrupted by Ctrl-C, out of disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRIAL = """
[data]
train_limit = 100
[partition]
clients = 3
[model]
width = 0.25
[train]
rounds = 2
[method]
name = "fedtiny"
density = 0.3
interval = 1
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedsparse", *arguments]


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trial.toml").write_text(TRIAL)
    return tmp_path


def test_a_run_completes_with_records_result_and_report(folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command("run", "trial.toml", "--format", "json"),
        cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    run = folder / result["folder"]
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert (result["status"], result["method"], len(rounds)) == ("complete", "fedtiny", 2)
    assert result["bytes_up"] == sum(record["bytes_up"] for record in rounds)
    assert json.loads((run / "result.json").read_text()) == {k: v for k, v in result.items() if k != "folder"}
    assert (run / "report.html").exists()
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == ["trial: round 1/2", "trial: round 2/2"]


def hear_ctrl_c() -> None:
    """A shell has what runs in its background ignore SIGINT, and so do that one's children: these tests, say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_the_rounds_so_far(folder: Path, environment: dict[str, str]) -> None:
    rounds = folder / "out" / "rounds.jsonl"
    with subprocess.Popen(
        command("run", "trial.toml", "--out", "out", "--set", "train.rounds=100000"),
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not (rounds.exists() and rounds.read_text().count("\n") >= 2) and time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted after" in out
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert 2 <= result["rounds"] == len(rounds.read_text().splitlines())
    assert (folder / "out" / "report.html").exists()


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_a_full_disk_ends_the_run_with_one_sentence(folder: Path, environment: dict[str, str]) -> None:
    """Files of at most 3000 bytes hold the configuration and some rounds, but not 100."""
    done = subprocess.run(
        command("run", "trial.toml", "--out", "out", "--quiet", "--set", "train.rounds=100", "--set", "checkpoints.every=0"),
        cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False, preexec_fn=limit_files,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: out cannot be written: the disk is full; its rounds so far are kept, and there is no checkpoint to go on from\n"
    )
    assert (folder / "out" / "rounds.jsonl").read_text().count("\n") >= 1
    assert not (folder / "out" / "result.json").exists()
    before = contents(folder / "out")
    again = subprocess.run(
        command("resume", "out"), cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "out has finished rounds (" in again.stderr
    assert contents(folder / "out") == before


def records(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "client_seconds")} for line in lines]


def weights(run: Path) -> bytes:
    return sorted((run / "checkpoints").glob("*.safetensors"))[-1].read_bytes()


@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_what_an_undisturbed_one_gives(folder: Path, environment: dict[str, str]) -> None:
    def fedsparse(*arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=folder, env=environment | {"FEDSPARSE_FAULT": fault}, capture_output=True,
            text=True, timeout=280, check=False,
        )  # fmt: skip

    killed = fedsparse("run", "trial.toml", "--out", "cut", "-q", fault="0:1:update:kill")
    assert killed.returncode == -9
    assert not (folder / "cut" / "result.json").exists()
    config = folder / "cut" / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace('"lr": 0.05', '"lr": 0.5'))
    refused = fedsparse("resume", "cut")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "training.lr is 0.5 but was 0.05" in refused.stderr
    config.write_text(kept)
    resumed = fedsparse("resume", "cut", "--format", "json")
    assert resumed.returncode == 0, resumed.stderr
    assert fedsparse("run", "trial.toml", "--out", "whole", "-q").returncode == 0
    assert records(folder / "cut") == records(folder / "whole")
    assert weights(folder / "cut") == weights(folder / "whole")
    assert (folder / "cut" / "report.html").exists()
    again = fedsparse("resume", "cut")
    assert (again.returncode, again.stderr) == (0, ""), "a complete run is shown again"


@pytest.mark.timeout(900)
def test_a_stop_in_the_first_round_keeps_what_came_before_it(folder: Path, environment: dict[str, str]) -> None:
    """FedTiny's selection is in the checkpoint before round 0; the quorum is missed as one client of three raises."""

    def fedsparse(*arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=folder, env=environment | {"FEDSPARSE_FAULT": fault}, capture_output=True,
            text=True, timeout=280, check=False,
        )  # fmt: skip

    words = ("run", "trial.toml", "--out", "cut", "-q", "--set", "failures.quorum=1")
    stopped = fedsparse(*words, fault="0:0:train:raise")
    assert stopped.returncode == 3
    assert "`fedsparse resume cut` goes on" in stopped.stderr
    assert (folder / "cut" / "checkpoints" / "000000.json").exists()
    resumed = fedsparse("resume", "cut", "-q")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert len(records(folder / "cut")) == 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["exit0", "leave0"])
def test_code_that_leaves_with_success_does_not_make_the_run_one(
    kind: str, folder: Path, environment: dict[str, str]
) -> None:
    def fedsparse(*arguments: str, fault: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=folder, env=environment | {"FEDSPARSE_FAULT": fault}, capture_output=True,
            text=True, timeout=280, check=False,
        )  # fmt: skip

    left = fedsparse("run", "trial.toml", "--out", "cut", "-q", fault=f"0:1:update:{kind}")
    assert left.returncode == 3
    assert left.stderr == (
        "error: the run's own code called exit(0); its rounds so far are kept in cut; `fedsparse resume cut` goes on\n"
    )
    assert not (folder / "cut" / "result.json").exists()
    resumed = fedsparse("resume", "cut", "-q", fault=f"0:1:train:{kind}")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((folder / "cut" / "result.json").read_text())["rounds"] == 2
    first, second = (json.loads(line) for line in (folder / "cut" / "rounds.jsonl").read_text().splitlines())
    assert (first["dropped"], [entry["reason"] for entry in second["dropped"]]) == ([], ["SystemExit: 0"])


def test_what_is_no_run_is_not_resumed(folder: Path, environment: dict[str, str]) -> None:
    (folder / "empty").mkdir()
    done = subprocess.run(
        command("resume", "empty"), cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: empty holds no config.json, so it is no run's folder\n"


KILLED = """
name = "{name}"
[data]
train_limit = 100
[partition]
clients = 3
[model]
width = 0.25
[train]
rounds = {rounds}
{methods}
"""
FIRST = '[method]\nname = "fedavg"\n'
OTHERS = "".join(
    f'[[method]]\nname = "{name}"\ndensity = 0.3\ninterval = 1\n' for name in ("fedtiny", "feddst")
)  # fmt: skip


def table_without_seconds(text: str) -> list[dict[str, Any]]:
    """The rows of the comparison but for their times."""
    rows = json.loads(text)["table"]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.mark.timeout(900)
def test_a_killed_comparison_goes_on_to_the_same_table(tmp_path: Path, environment: dict[str, str]) -> None:
    """SIGKILL in round 2, which only the second file's runs have: dense is complete, fedtiny cut, feddst not begun."""
    (tmp_path / "a.toml").write_text(KILLED.format(name="dense", rounds=2, methods=FIRST))
    (tmp_path / "b.toml").write_text(KILLED.format(name="others", rounds=4, methods=OTHERS))

    def compare(out: str, *more: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("compare", "a.toml", "b.toml", "--out", out, "--target", "0.1", "--format", "json", *more),
            cwd=tmp_path, env=environment | {"FEDSPARSE_FAULT": fault}, capture_output=True, text=True, timeout=280,
            check=False,
        )  # fmt: skip

    whole = compare("whole")
    assert whole.returncode == 0, whole.stderr
    assert compare("cut", fault="0:2:update:kill").returncode == -9
    cut = tmp_path / "cut"
    assert (cut / "dense" / "result.json").exists()
    assert not (cut / "fedtiny" / "result.json").exists()
    assert not (cut / "feddst").exists()
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    refused = compare("cut", "--set", "method.density=0.2")
    assert refused.returncode == 2
    assert "--out cut holds another comparison: dense.method.density is 0.2 but was 1.0 there" in refused.stderr
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before
    again = compare("cut")
    assert again.returncode == 0, again.stderr
    told = [line.partition("  ")[0] for line in again.stderr.splitlines()]
    assert told == [
        "dense: complete already", "fedtiny: round 3/4", "fedtiny: round 4/4",
        *(f"feddst: round {t}/4" for t in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert table_without_seconds(again.stdout) == table_without_seconds(whole.stdout)
