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
    assert text.count("    train.epochs = 10\n") == 1, "FedDST's"


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


def test_explain_is_of_the_runs_levels_and_pieces(here: Path, capsys: Capture) -> None:
    config = str(here / "pair" / "sparse.toml")
    small = ("--set", "model.name='cnn'", "--set", "train.activations='lossless'", "--set", "train.batch_size=16")
    whole = printed(capsys, "explain", config, *small)
    assert "lossless" in whole
    assert "output in blocks of images" in whole
    assert "output in blocks of images" not in printed(capsys, "explain", config, *small, "--set", "train.pieces=4")


def test_profile_shows_layers_and_sizes_and_writes_the_picture(here: Path, capsys: Capture) -> None:
    config = str(here / "pair" / "sparse.toml")
    text = printed(capsys, "profile", config, "--set", "model.name='cnn'", "--set", "train.pieces=2", "--steps", "1")
    assert "fedavg: minibatches in 2 pieces; what is kept is that of the first" in text
    folder = here / "runs" / "sparse-profile"
    assert re.search(r"kept for the backward pass .* [kM]B .* [kM]B .* [kM]B", text)
    assert re.search(r"layer +model +weights +indices +masks +optim\. +grads +activ\. .*kept", text)
    assert "ms of the forward and the backward pass" in text
    assert str(folder.relative_to(here)) in text
    assert (folder / "memory_of_a_step.png").read_bytes().startswith(b"\x89PNG")
    profile = json.loads((folder / "profile.json").read_text())
    assert [step["name"] for step in profile["steps"]] == ["dense", "masked dense", "fedavg"]
    layer = next(cost for cost in profile["steps"][2]["layers"].values() if "indices" in cost["held"])
    assert layer.keys() == {"held", "kept", "forward", "backward"}
    assert set(layer["held"]) == {"weights", "indices", "optimizer", "gradients"}
    assert {path.name for path in folder.iterdir()} == {"memory_of_a_step.png", "profile.json"}
    assert main(["profile", config, "--out", config]) == 2
    assert capsys.readouterr().err.strip().endswith("sparse.toml is a file but must be a folder")
