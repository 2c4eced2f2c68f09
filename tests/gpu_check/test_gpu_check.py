"""gpu_check as a command, on the CPU: the smoke test, the machine without a GPU, and what it may import."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import plan, rows
from benchmarks.gpu import section as process_of_section
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
# The command starts a process for each section, which costs seconds: two of them in the smoke test of the command, the
# cases of all in this process.
COMMANDED = ("layers", "sparse_ops")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(output, folder of the results) of one smoke test."""
    out = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--smoke", "--out", str(out)]
    command += ["--only", *COMMANDED]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(out / 'log.txt').read_text()}"
    return done.stdout, out


@pytest.mark.parametrize("listed", plan.SECTIONS, ids=lambda listed: listed.name)
def test_smoke_of_every_section(listed: plan.Section, tmp_path: Path) -> None:
    """Every case is measured, or says that it needs a GPU; something is measured in every section."""
    cases = listed.cases(smoke=True)
    process_of_section.run(Bench("cpu", smoke=True), listed.name, cases, tmp_path / "rows", seconds=60)
    found = [row for row in rows.read(tmp_path / "rows") if row.status != rows.STARTED]
    assert [row.case for row in found] == [case.label for case in cases]
    check_rows([asdict(row) for row in found])


def check_rows(found: list[dict[str, Any]]) -> None:
    for row in found:
        if row["status"] == rows.MEASURED:
            assert all(time["median"] > 0 for time in row["times"].values())
        else:
            assert row["note"].endswith("needs a CUDA device"), row
    assert rows.MEASURED in {row["status"] for row in found}


def test_the_command_runs_its_sections(smoke: tuple[str, Path]) -> None:
    stored = json.loads((smoke[1] / "results.json").read_text())
    for name in COMMANDED:
        found = [row for row in stored["rows"] if row["section"] == name]
        assert [row["case"] for row in found] == [case.label for case in plan.section(name).cases(smoke=True)]
        check_rows(found)
    for fact in ("device", "date", "commit", "torch", "cpus"):
        assert stored["facts"][fact]


def test_smoke_says_that_it_is_none_and_prints_the_table_last(smoke: tuple[str, Path]) -> None:
    output, out = smoke
    table = (out / "table.txt").read_text()
    assert "smoke test, not a measurement" in table.splitlines()[0]
    assert table.strip() in output
    assert output.strip().splitlines()[-1].startswith("gpu-check: 0 of ")


def test_csv_has_a_line_for_each_pass(smoke: tuple[str, Path]) -> None:
    with (smoke[1] / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    layer = [line["pass"] for line in lines if line["case"] == "layer 64@32x32 fp32 NCHW"]
    assert layer == ["forward", "input", "weight"]
    assert {line["status"] for line in lines} <= {rows.MEASURED, rows.NOT_MEASURED}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, the same table with "not measured" in every line, exit code 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == "gpu-check: nothing was measured, because no GPU is visible to torch."
    for section in plan.SECTIONS:
        for case in section.cases():
            assert f"{case.label:<56} not measured: no GPU" in output


@pytest.mark.parametrize("failed", [False, True])
def test_exit_code(failed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = rows.FAILED if failed else rows.NOT_MEASURED
    monkeypatch.setattr(gpu_check, "_measure", lambda *_: [Row("steps", "a", status, "why")])
    arguments = ["--device", "cpu", "--smoke", "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == int(failed)
    assert f"{status}: why" in (tmp_path / "table.txt").read_text()


def test_cpu_times_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--device", "cpu"])
    assert stopped.value.code == 2
    assert "--device cpu needs --smoke" in capsys.readouterr().err


def test_imports_neither_configuration_nor_what_a_gpu_machine_may_lack() -> None:
    """None in sys.modules makes an import of that name raise ImportError."""
    missing = ["pydantic", "typer", "torchvision", "rich", "mpi4py", "sklearn", "fedsparse.config", "fedsparse.cli"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "import benchmarks.gpu_check, benchmarks.gpu.section\n"
        "from benchmarks.gpu import bench, plan, training\n"
        "print(sum(len(section.cases()) for section in plan.SECTIONS))\n"
        "training.network(bench.Bench('cpu', smoke=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_all_sections_and_the_tests_fit_into_the_time() -> None:
    minutes = gpu_check._parse([]).minutes
    assert plan.TEST_SECONDS + sum(each.seconds for each in plan.SECTIONS) <= 60 * minutes - gpu_check.RESERVE_SECONDS
    for each in plan.SECTIONS:
        assert each.cases()[0].seconds <= each.seconds, f"{each.name} has no time for its first case"


def test_a_section_alone_may_take_all_that_is_left() -> None:
    section = plan.section("selection")
    assert gpu_check._allowed(gpu_check._parse(["--only", "selection"]), section, 400.0) == 400.0
    assert gpu_check._allowed(gpu_check._parse(["--only", "selection", "norms"]), section, 400.0) == section.seconds
    assert gpu_check._allowed(gpu_check._parse([]), section, -3.0) == 0.0


def test_labels_are_unique_and_comparisons_exist() -> None:
    cases = [case for section in plan.SECTIONS for case in section.cases()]
    labels = [case.label for case in cases]
    assert len(labels) == len(set(labels))
    assert {case.versus for case in cases} - {""} <= set(labels) | absent_rivals()


def absent_rivals() -> set[str]:
    """Steps that are compared with a masked step of a size and precision that is not in the plan."""
    return {"step b256 fp32 masked eager NCHW"}


def test_speedups() -> None:
    def row(case: str, median: float, versus: str = "") -> Row:
        times: dict[str, Any] = {"a": {"median": median}, "b": {"median": median}}
        return Row("steps", case, rows.MEASURED, times=times, versus=versus)

    listed = [row("slow", 6.0), row("fast", 1.5, "slow"), row("lonely", 1.0, "nobody")]
    rows.add_speedups(listed)
    assert [each.speedup for each in listed] == [None, 4.0, None]
