"""A section's process: what fails, dies or hangs costs its own line only. And the networks that are timed."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import clients, memory, process, rows, section
from benchmarks.gpu.bench import Bench, checked, relative_error
from benchmarks.gpu.plan import Section
from benchmarks.gpu.process import Runner
from benchmarks.gpu.rows import Case, Measured, NotMeasurableError, Timing
from benchmarks.gpu.training import TrainingStep, batch_of, network

CPU = Bench("cpu", smoke=True)
GOOD = Measured({"step": Timing(2.0, 1.0, 3.0, 5)})


def raising(error: Exception) -> Any:
    def run(bench: Bench) -> Measured:
        raise error

    return run


def test_a_failing_case_leaves_its_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    cases = [
        Case("bad", raising(RuntimeError("boom\nmore"))),
        Case("cannot", raising(NotMeasurableError("needs a CUDA device"))),
        Case("good", lambda _: GOOD),
    ]
    path = tmp_path / "rows.jsonl"
    assert section.run(CPU, "steps", cases, path, 60) == 0
    done = [row for row in rows.read(path) if row.status != rows.STARTED]
    assert [(row.case, row.status, row.note) for row in done] == [
        ("bad", rows.FAILED, "RuntimeError: boom"),
        ("cannot", rows.NOT_MEASURED, "needs a CUDA device"),
        ("good", rows.MEASURED, ""),
    ]
    assert done[2].times["step"]["median"] == 2.0


def test_what_does_not_fit_is_not_measured_and_a_shorter_case_after_it_is(tmp_path: Path) -> None:
    cases = [Case("long", lambda _: GOOD, seconds=100.0), Case("short", lambda _: GOOD, seconds=0.5)]
    path = tmp_path / "rows.jsonl"
    section.run(Bench("cpu"), "steps", cases, path, 10)
    done = {row.case: row for row in rows.read(path)}
    assert done["long"].status == rows.NOT_MEASURED
    assert "it takes about 100" in done["long"].note
    assert done["short"].status == rows.MEASURED


def test_a_lost_device_ends_the_process(tmp_path: Path) -> None:
    cases = [Case("bad", raising(torch.AcceleratorError("CUDA error"))), Case("next", lambda _: GOOD)]
    path = tmp_path / "rows.jsonl"
    assert section.run(CPU, "steps", cases, path, 60) == section.EXIT_DEVICE_LOST
    assert [row.case for row in rows.read(path)] == ["bad", "bad"]


def test_a_wrong_result_is_not_timed() -> None:
    with pytest.raises(ValueError, match="wrong result, so not timed: y is off by 5"):
        checked(0.5, 0.1, "y")
    with pytest.raises(ValueError, match="off by nan"):
        checked(relative_error(torch.tensor([torch.nan]), torch.ones(1)), 0.1, "y")


@dataclass(frozen=True)
class Letters(Section):
    """Four cases, run by a program instead of the real section."""

    def cases(self, smoke: bool = False) -> list[Case]:
        return [Case(label, lambda _: GOOD) for label in "abcd"]


class Fake(Runner):
    """Starts `program` with the file of rows and the number of the first case in sys.argv."""

    program = ""

    def _command(self, section: Section, path: Path, first: int, seconds: float) -> list[str]:
        prelude = (
            "import json, os, signal, sys, time\n"
            "def say(case, status):\n"
            "    row = json.dumps({'section': 's', 'case': case, 'status': status})\n"
            "    print(row, file=open(sys.argv[1], 'a'))\n"
            "cases = 'abcd'[int(sys.argv[2]):]\n"
        )
        return [sys.executable, "-c", prelude + self.program, str(path), str(first)]


def outcome(tmp_path: Path, program: str, seconds: float = 30.0) -> dict[str, tuple[str, str]]:
    runner = Fake(tmp_path, tmp_path / "log.txt", tmp_path, "cpu")
    runner.program = program
    found = runner.section(Letters("s", "S", seconds), seconds)
    return {row.case: (row.status, row.note) for row in found}


def test_a_crash_costs_one_case(tmp_path: Path) -> None:
    """Case b kills its process by SIGSEGV; a second process goes on with c."""
    found = outcome(
        tmp_path,
        "for c in cases:\n"
        "    say(c, 'started')\n"
        "    if c == 'b': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    say(c, 'measured')\n",
    )
    assert [status for status, _ in found.values()] == ["measured", "failed", "measured", "measured"]
    assert found["b"][1].startswith("exit code -11")


def test_a_hanging_case_is_killed_with_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    program = "say('a', 'started'); say('a', 'measured'); say('b', 'started'); time.sleep(60)"
    found = outcome(tmp_path, program, seconds=1.0)
    assert found["a"][0] == "measured"
    assert found["b"][0] == "failed"
    assert found["b"][1].startswith("killed after ")
    assert found["c"] == ("not measured", "the section's 1 s were spent")


def test_a_section_that_does_not_start(tmp_path: Path) -> None:
    found = outcome(tmp_path, "sys.exit('no such module')")
    assert found["a"] == ("failed", "exit code 1: no such module")
    assert found["d"] == ("not measured", "the section does not start")


MARK = "import os, pytest\npytestmark = pytest.mark.gpu\n"


@pytest.mark.parametrize(
    ("more", "status", "note"),
    [
        ("def test_e(): pytest.skip('why')", "measured", "3 passed, 2 skipped"),
        ("def test_e(): assert False", "failed", "3 passed, 1 skipped, 1 failed"),
        ("def test_e(): os._exit(7)", "failed", "3 passed, 1 skipped, test_c.py: exit code 7: "),
    ],
)
def test_the_tests_of_all_files_are_counted(tmp_path: Path, more: str, status: str, note: str) -> None:
    """Two files, and a third that may fail or die."""
    (tmp_path / "test_a.py").write_text(f"{MARK}def test_a(): pass\ndef test_b(): pass\n")
    (tmp_path / "test_b.py").write_text(f"{MARK}def test_c(): pass\ndef test_d(): pytest.skip('why')\n")
    (tmp_path / "test_c.py").write_text(f"{MARK}{more}\n")
    runner = Runner(process.ROOT, tmp_path / "log.txt", tmp_path, "cpu", suite=tmp_path)
    row = runner.tests(100.0)
    assert row.status == status
    assert row.note.startswith(note)


def test_no_test_is_no_success(tmp_path: Path) -> None:
    row = Runner(process.ROOT, tmp_path / "log.txt", tmp_path, "cpu", suite=tmp_path).tests(1.0)
    assert (row.status, row.note) == ("failed", "no test ran")


@pytest.mark.parametrize(
    "case", [case for case in memory.cases() if "triton" not in case.label], ids=lambda case: case.label
)
def test_memory_of_every_contender(case: Case) -> None:
    """Each takes a right step (compared with float64 first); on the CPU no peak is read."""
    measured = case.run(CPU)
    assert measured.error is not None
    assert measured.peak_bytes is None
    assert measured.times["step"].median > 0


def test_clients_together_take_the_steps_they_take_alone() -> None:
    """Grouped convolutions and norms over all channels change nothing: float64, every weight of 3 clients."""
    alone = []
    for client in range(3):
        images, labels = batch_of(CPU, 8, seed=client)
        model = network(CPU, seed=client).double()
        alone.append(TrainingStep(CPU, model, images.double(), labels))
    images = torch.cat([step.images for step in alone], dim=1)
    labels = torch.stack([step.labels for step in alone], dim=1)
    merged = clients.together([network(CPU, seed=client).double() for client in range(3)])

    joint = TrainingStep(CPU, merged, images, labels, loss=partial(clients.summed_loss, clients=3))
    joint()
    for step in alone:
        step()
    for name, parameter in merged.named_parameters():
        own = [step.model.get_parameter(name) for step in alone]
        torch.testing.assert_close(
            parameter.flatten(), torch.cat([each.flatten() for each in own]), rtol=1e-9, atol=1e-12
        )


def test_masked_step_keeps_masked_weights_at_zero() -> None:
    model = network(CPU)
    mask = torch.rand(model.get_parameter("1.conv1.weight").shape) < 0.3
    with torch.no_grad():
        model.get_parameter("1.conv1.weight").mul_(mask)
    step = TrainingStep(CPU, model, *batch_of(CPU, 8), masks={"1.conv1.weight": mask})
    step()
    step()
    weight = model.get_parameter("1.conv1.weight")
    assert weight[~mask].eq(0).all()
    assert weight[mask].ne(0).any()
    step.restore()
    assert step.change().abs().max() == 0
