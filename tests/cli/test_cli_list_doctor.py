"""`list`, `doctor`, `--version`, `--help`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedsparse
from fedsparse.cli import main

Capture = pytest.CaptureFixture[str]


def printed(capsys: Capture, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_methods_with_papers_and_settings(capsys: Capture) -> None:
    text = printed(capsys, "list", "methods")
    assert "McMahan" in text
    assert "    density = 0.1" in text
    assert json.loads(printed(capsys, "list", "methods", "--format", "json"))["fedtiny"]["settings"]["blocks"] == "5"


def test_models_and_data_sets(capsys: Capture) -> None:
    assert "resnet20" in printed(capsys, "list", "models")
    assert "digits" in printed(capsys, "list", "datasets")


def test_what_cannot_be_listed(capsys: Capture) -> None:
    assert main(["list", "layers"]) == 2
    assert "methods" in capsys.readouterr().err


def test_doctor_tells_what_is_there_and_how_to_get_the_rest(capsys: Capture) -> None:
    findings = {finding["part"]: finding for finding in json.loads(printed(capsys, "doctor", "--format", "json"))}
    assert findings["torch"]["found"]
    assert findings["data digits"]["found"]
    assert findings["disk"]["detail"].endswith(str(Path.cwd()))
    assert any(part.startswith("compiled") for part in findings)
    for part in ("cuda", "triton", "mpi4py", "mpirun"):
        assert findings[part]["found"] or findings[part]["remedy"]
    assert "mpirun" in printed(capsys, "doctor")


def test_version_and_help_load_no_torch() -> None:
    script = (
        "import sys; from fedsparse.cli import main; codes = [main(['--version']), main(['--help']), main([])]; "
        "print(codes, [name for name in ('torch', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert f"fedsparse {fedsparse.__version__}" in done.stdout
    assert "doctor" in done.stdout
    assert done.stdout.rstrip().endswith("[]")
    assert "[0, 0, " in done.stdout


def test_explain_tells_what_runs_each_pass(here: Path, capsys: Capture) -> None:
    config = str(here / "pair" / "sparse.toml")
    shipped = printed(capsys, "explain", config, "--set", "model.name='cnn'")
    assert re.search(r"sparse, \d+ of \d+ weights \(.*%\).*forward (cpu|dense) \(shipped crossover \d+%\)", shipped)
    measured = printed(capsys, "explain", config, "--set", "model.name='cnn'", "--measure")
    assert re.search(r"weight gradient (cpu|dense) \(cpu [0-9.]+ ms, dense [0-9.]+ ms\)", measured)
    assert printed(capsys, "explain", config, "--set", "model.name='cnn'").count(" ms") >= measured.count(" ms") - 2
