"""`fedsparse run --ranks N` gives the records of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsparse.cli.ranks import find_mpirun

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
SAME = ("accuracy", "loss", "train_loss", "bytes_up", "bytes_down", "layer_densities", "mask_change", "clients")


def records(folder: Path) -> list[list[object]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [[json.loads(line)[key] for key in SAME] for line in lines]


def fedsparse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsparse", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=850, check=False, env={**os.environ, **environment}
    )


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_three_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(CONFIG)
    one = fedsparse("run", str(config), "--out", str(tmp_path / "one"), "--quiet")
    three = fedsparse(
        "run", str(config), "--out", str(tmp_path / "three"), "--quiet", "--ranks", "3", "--format", "json"
    )
    assert (one.returncode, three.returncode) == (0, 0), three.stderr[-2000:]
    assert json.loads(three.stdout)["ranks"] == 3
    assert records(tmp_path / "one") == records(tmp_path / "three")
    assert (tmp_path / "three" / "result.json").exists()
    assert (tmp_path / "three" / "report.html").exists()


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_mpirun() is None, reason="mpirun is not installed (pip install 'fedsparse[mpi]')")
def test_a_lost_rank_is_named_and_a_lost_server_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(CONFIG)
    folder = tmp_path / "run"
    lost = fedsparse(
        "run", str(config), "--out", str(folder), "--ranks", "3", FEDSPARSE_FAULT="1:0:train:kill,0:1:update:kill"
    )
    assert lost.returncode == 3
    assert "the server's rank is lost; `fedsparse resume` goes on" in lost.stderr
    assert not (folder / "result.json").exists()
    resumed = fedsparse("resume", str(folder), "--quiet")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    (entry,) = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["incidents"]
    assert (entry["rank"], entry["reason"]) == (1, "lost: its process ended")
    assert "rank 1, client" in (folder / "report.html").read_text()
    assert json.loads((folder / "result.json").read_text())["status"] == "complete"


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
