"""A run that was killed, wherever, resumes to the bits of a run that was not; what does not fit is refused."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import kill_program
import pytest
from kill_program import METHODS, STAGES, experiment

from fedsparse.federated import Checkpoints, Experiment, Training, artefacts, checkpoint, faults, journal, run
from fedsparse.federated.checkpoint import Checkpoint, CheckpointError
from fedsparse.federated.journal import resumable


@cache
def outcomes() -> dict[tuple[str, str], dict]:
    done = subprocess.run(
        [sys.executable, kill_program.__file__], capture_output=True, text=True, timeout=850, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {(row["method"], row["stage"]): row for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_any_stage_a_run_resumes_to_the_same_bits(name: str) -> None:
    undisturbed = outcomes()[name, ""]
    assert (undisturbed["killed"], len(undisturbed["hash"])) == (0, 64)
    for stage in STAGES:
        found = outcomes()[name, stage]
        assert found["killed"] == -9, f"{stage} was never reached"
        assert found["hash"] == undisturbed["hash"], stage


def test_every_point_of_a_round_is_tried() -> None:
    assert {stage.partition(":")[2] for stage in STAGES} == set(faults.POINTS) - {"answer", "sum"}


LEFT_BEHIND = """
import gc, pathlib, sys, torch
from kill_program import METHODS, experiment, run
gc.disable()
run(experiment(METHODS["fedtiny"]), pathlib.Path(sys.argv[1]))
gc.set_debug(gc.DEBUG_SAVEALL)
gc.collect()
print([tuple(found.shape) for found in gc.garbage if isinstance(found, torch.Tensor)])
"""


def test_the_first_run_of_a_process_leaves_no_tensors_to_be_freed_amid_a_client(tmp_path: Path) -> None:
    """Else the peak bytes in its records depend on when garbage is collected, and two equal runs differ."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND, str(tmp_path)], capture_output=True, text=True, timeout=250, check=False,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr[-2000:]


def stopped(
    out: Path, fault: str, monkeypatch: pytest.MonkeyPatch, start: Checkpoint | None = None, **changes: object
) -> Experiment:
    """A run of FedTiny in `out` that a fault ended."""
    trial = Experiment(**{**experiment(METHODS["fedtiny"]).__dict__, **changes})
    monkeypatch.setenv(faults.VARIABLE, fault)
    faults.planned.cache_clear()
    with pytest.raises((OSError, RuntimeError)):
        run(trial, out, start=start)
    monkeypatch.delenv(faults.VARIABLE)
    faults.planned.cache_clear()
    return trial


@pytest.mark.parametrize("point", ["line", "tensors", "manifest"])
def test_a_full_disk_loses_no_finished_round(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    trial = stopped(cut, f"0:1:{point}:full", monkeypatch)
    assert checkpoint.saved(cut) == [0, 1]
    assert not list(cut.rglob(".*")), "no temporary file is left"
    run(trial, cut, start=resumable(cut, trial))
    run(trial, whole)
    assert kill_program.digest(cut) == kill_program.digest(whole)


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may have 2000 bytes, and the tensors of the first checkpoint need more."""
    import resource
    import signal

    trial = experiment(METHODS["fedavg"])
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            run(trial, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno == errno.EFBIG
    assert checkpoint.saved(tmp_path) == []


def test_the_last_are_kept_and_not_every_round_is_saved(tmp_path: Path) -> None:
    trial = experiment(METHODS["fedavg"])
    for every, keep, expected in ((1, 2, [2, 3]), (2, 5, [0, 2, 3]), (0, 1, [])):
        out = tmp_path / f"{every}-{keep}"
        out.mkdir()
        run(Experiment(**{**trial.__dict__, "checkpoints": Checkpoints(every, keep)}), out)
        assert checkpoint.saved(out) == expected
        assert len(list((out / "checkpoints").glob("*"))) == 2 * len(expected)


def test_a_run_may_go_on_from_an_older_checkpoint(tmp_path: Path) -> None:
    trial = experiment(METHODS["fedrts"])
    run(trial, tmp_path)
    first = kill_program.digest(tmp_path)
    assert resumable(tmp_path, trial, 1).rounds == 1  # type: ignore[union-attr]
    run(trial, tmp_path, start=resumable(tmp_path, trial, 1))
    assert kill_program.digest(tmp_path) == first
    with pytest.raises(CheckpointError, match="no checkpoint after 9 rounds"):
        resumable(tmp_path, trial, 9)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5])
def test_a_kill_while_a_run_is_set_back_leaves_what_resumes(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 1 of 3 rounds: the result, manifest and tensors of 3 and of 2 are deleted, and two records cut off."""
    trial = experiment(METHODS["fedavg"])
    run(trial, tmp_path)
    first, start, steps = kill_program.digest(tmp_path), resumable(tmp_path, trial, 1), itertools.count()

    def killed_at(act: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: object, **options: object) -> None:
            if next(steps) == step:
                raise KeyboardInterrupt
            act(*arguments, **options)

        return changed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed_at(Path.unlink))
        patched.setattr(journal, "write_atomic", killed_at(artefacts.write_atomic))
        with pytest.raises(KeyboardInterrupt):
            journal.Journal(tmp_path, trial, start)
    run(trial, tmp_path, start=resumable(tmp_path, trial))
    assert kill_program.digest(tmp_path) == first


def test_a_kill_after_a_run_was_set_back_leaves_what_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = experiment(METHODS["fedavg"])
    run(trial, tmp_path)
    first = kill_program.digest(tmp_path)
    stopped(tmp_path, "0:1:update:raise", monkeypatch, start=resumable(tmp_path, trial, 1), method=METHODS["fedavg"])
    assert checkpoint.saved(tmp_path) == [1]
    run(trial, tmp_path, start=resumable(tmp_path, trial))
    assert kill_program.digest(tmp_path) == first


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"down": ', '"down": 1'))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("checkpoints/000002.safetensors", cut_off, ["000002.safetensors", "hash", "--from 1"]),
        ("checkpoints/000002.safetensors", flip, ["000002.safetensors", "hash", "--from 1"]),
        ("checkpoints/000002.safetensors", Path.unlink, ["000002.safetensors", "cannot be read"]),
        ("checkpoints/000002.json", cut_off, ["000002.json", "not JSON"]),
        ("checkpoints/000002.json", edit, ["000002.json", "hash", "edited"]),
        ("rounds.jsonl", Path.unlink, ["first 2 lines", "rounds.jsonl"]),
        ("rounds.jsonl", lambda path: path.write_text(path.read_text().replace("0", "1", 1)), ["rounds.jsonl"]),
    ],
)
def test_what_was_truncated_or_edited_is_refused_and_left_alone(
    file: str, damage: object, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = stopped(tmp_path, "0:2:update:raise", monkeypatch)
    damage(tmp_path / file)  # type: ignore[operator]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as error:
        resumable(tmp_path, trial)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_another_experiment_is_refused_and_its_first_difference_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = stopped(tmp_path, "0:2:update:raise", monkeypatch)
    others = {
        "training.lr is 0.5 but was 0.05": {"training": Training(3, 3, 2, 8, lr=0.5)},
        "seed is 7 but was 2": {"seed": 7},
        "method.name is fedavg but was fedtiny": {"method": METHODS["fedavg"]},
        "parts is": {"parts": [*trial.parts[:-1], trial.parts[0]]},
        "model is": {"model": kill_program.nn.Linear(2, 2)},
        "train.samples": {"train": trial.train.__class__("toy", trial.train.images[:9], trial.train.labels[:9], 3, (0.0,), (1.0,))},  # type: ignore[attr-defined]
    }  # fmt: skip
    for words, changes in others.items():
        with pytest.raises(CheckpointError, match="when it was started") as error:
            resumable(tmp_path, Experiment(**{**trial.__dict__, **changes}))
        assert words in str(error.value)
    renamed = Experiment(**{**trial.__dict__, "name": "other", "checkpoints": Checkpoints(2, 9), "server_works": True})
    assert resumable(tmp_path, renamed) is not None, "what decides no number may change"


def test_a_run_that_never_began_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = stopped(tmp_path, "0:0:open:raise", monkeypatch)
    assert resumable(tmp_path, trial) is None
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    assert run(trial, tmp_path)["status"] == "complete"


@pytest.mark.parametrize("every", [0, 1])
def test_rounds_without_a_checkpoint_are_refused_and_kept(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped amid the second line: one finished round."""
    trial = stopped(tmp_path, "0:1:line:full", monkeypatch, checkpoints=Checkpoints(every))
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    kept = (tmp_path / "rounds.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"has finished rounds \(1\) and no checkpoint to go on from"):
        resumable(tmp_path, trial)
    assert (tmp_path / "rounds.jsonl").read_bytes() == kept


def test_half_of_the_first_round_without_a_checkpoint_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = stopped(tmp_path, "0:0:line:full", monkeypatch, checkpoints=Checkpoints(0))
    assert (tmp_path / "rounds.jsonl").stat().st_size > 0
    assert resumable(tmp_path, trial) is None
    assert run(trial, tmp_path)["rounds"] == 3


def test_an_order_that_is_no_fault_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("1:2:train", "1:2:nowhere:kill", "1:2:train:hurt", "x:2:train:kill", "1:2:train:slow=", "1:2:train:kill=3")
    for text in wrong:
        monkeypatch.setenv(faults.VARIABLE, text)
        faults.planned.cache_clear()
        with pytest.raises(ValueError, match="rank:round:point:kind"):
            faults.planned()
    monkeypatch.undo()
    faults.planned.cache_clear()
