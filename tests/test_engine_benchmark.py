"""What the engine's benchmark says of a rival that fails or does not end, without any rival."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import engine
from benchmarks.rivals.tasks import TASKS, Clock, build, images


def stand_in(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rivals' environment whose Python runs `program` whatever it is told."""
    (folder / "bin").mkdir()
    (folder / "has-pfl").touch()
    python = folder / "bin" / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setenv("FEDSPARSE_RIVALS", str(folder))


def running(pid: int) -> bool:
    """Whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rival_that_does_not_end_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    note = f"open({str(child)!r}, 'a').write(f'{{os.getpid()}} ')"
    stand_in(tmp_path, f"import os, time; os.fork() or os.setsid(); {note}; time.sleep(60)", monkeypatch)
    monkeypatch.setattr(engine, "LIMIT", 2.0)
    begun = time.monotonic()
    assert engine.rival("pfl", "cnn").reason == "it did not end in 2 s and was stopped"
    assert time.monotonic() - begun < 30
    both = [int(pid) for pid in child.read_text().split()]
    assert len(both) == 2
    assert not any(running(pid) for pid in both)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('no such module')", "exit code 1: no such module"),
        ("print('done')", "JSONDecodeError"),
        ('print(\'{"version": "1", "torch": "0.1", "rounds": []}\')', "it has torch 0.1"),
    ],
)
def test_a_rival_that_fails_is_not_measured_and_says_why(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, program, monkeypatch)
    assert engine.rival("pfl", "cnn").reason.startswith(reason)


def test_of_a_rivals_rounds_the_cheapest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"version": "0.6", "torch": torch.__version__, "rounds": [[3.0, 2.0], [2.5, 2.5]]}
    stand_in(tmp_path, f"print({json.dumps(said)!r})", monkeypatch)
    assert engine.rival("pfl", "cnn") == engine.Row("pfl", "0.6", wall=2.5, cpu=2.0, dearest=2.0)


def test_of_an_engines_runs_the_cheapest_counts_and_the_dearest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    failed = engine.Row("pfl", reason="exit code 1")
    runs = [engine.Row("pfl", "0.6", 1.5, 1.2, 1.2), failed, engine.Row("pfl", "0.6", 1.1, 1.0, 1.0)]
    row = engine.best(runs)
    assert row == engine.Row("pfl", "0.6", wall=1.1, cpu=1.0, dearest=1.2)
    assert engine.best([failed, failed]) == failed
    engine.show("cnn", TASKS["cnn"], [row, failed])
    *_, measured, other = capsys.readouterr().out.splitlines()
    assert measured == "| pfl 0.6 | 1.000 | 1.100 | 20.00 to 24.00 |"
    assert "not measured: exit code 1" in other


def test_rounds_in_turn_are_compared_each_with_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"pfl": [1.2, 1.0, 3.3], "ours": [1.0, 1.25, 3.0], "plain": [0.5, 0.7, 0.6]}
    stand_in(tmp_path, f"print({json.dumps(said)!r})", monkeypatch)
    engine.pair("cnn", TASKS["cnn"])
    *_, pfl, ours, plain, ratio = capsys.readouterr().out.splitlines()
    assert (pfl, ours, plain) == ("| pfl | 24.00 | 20.00 |", "| ours | 25.00 | 20.00 |", "| plain | 12.00 | 10.00 |")
    assert ratio == "pfl over ours: median 1.100; ours cheaper in 2 of 3 rounds"


def test_data_is_made_once_a_process_and_is_what_a_task_says() -> None:
    task = TASKS["linear"]
    assert images(task) is images(task), "else a rival that asks for each client pays for it"
    x, y = images(task)
    assert (x.shape, y.shape) == ((10_000, 1, 28, 28), (10_000,))
    assert build(task)(x[:2]).shape == (2, 10)


def test_a_clock_leaves_the_warm_up_out() -> None:
    clock = Clock()
    clock.marks = [(0.0, 0.0), (9.0, 8.0), (10.0, 8.5)]
    assert clock.rounds() == [(1.0, 0.5)]
