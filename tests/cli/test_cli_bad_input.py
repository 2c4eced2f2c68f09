"""Bad input: exit code 2, one sentence that names the field, no traceback, nothing created."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedsparse.cli import main
from fedsparse.federated import faults

GOOD = '[method]\nname = "fedavg"\n'
FEDTINY = '[method]\nname = "fedtiny"\n'

# (what is wrong, the file's text, further arguments, words that the sentence must hold)
CASES: list[tuple[str, str, list[str], list[str]]] = [
    ("syntax", "[train\nlr = 1", [], ["trial.toml", "TOML", "line 1"]),
    ("key twice", "seed = 1\nseed = 2\n" + GOOD, [], ["TOML", "line 2"]),
    ("unknown table", "[trian]\n" + GOOD, [], ["trian", "'train'"]),
    ("unknown key", "[train]\nlearning_rat = 1\n" + GOOD, [], ["train.learning_rat", "keys:", "lr_decay"]),
    ("no method", "[train]\nlr = 1\n", [], ["method", "missing"]),
    ("method without name", "[method]\ndensity = 0.5\n", [], ["method.name", "fedavg", "fedtiny"]),
    ("unknown method", '[method]\nname = "fedtinny"\n', [], ["method.name", "'fedtiny'", "fedavg"]),
    ("method is a number", "method = 3\n", [], ["method is 3", "table"]),
    ("unknown method key", FEDTINY + "poool = 3\n", [], ["method.poool", "'pool'"]),
    ("another method's key", GOOD + "pool = 3\n", [], ["method.pool", "density"]),
    ("density 0", FEDTINY + "density = 0\n", [], ["method.density is 0", "greater than 0"]),
    ("density above 1", FEDTINY + "density = 1.5\n", [], ["method.density is 1.5", "less than 1"]),
    ("density as text", FEDTINY + 'density = "10 %"\n', [], ["method.density", "a number"]),
    ("mask of a dense method", GOOD + 'initial = "snip"\n', [], ["method.initial", "density is 1"]),
    ("unknown score", GOOD + 'density = 0.1\ninitial = "sinp"\n', [], ["method.initial", "snip"]),
    ("lr negative", "[train]\nlr = -1\n" + GOOD, [], ["train.lr is -1", "greater than 0"]),
    ("lr not finite", "[train]\nlr = inf\n" + GOOD, [], ["train.lr is inf"]),
    ("rounds 0", "[train]\nrounds = 0\n" + GOOD, [], ["train.rounds is 0", "from 1 to"]),
    ("rounds a fraction", "[train]\nrounds = 1.5\n" + GOOD, [], ["train.rounds", "whole number"]),
    ("table as value", "train = 3\n" + GOOD, [], ["train is 3", "table"]),
    ("momentum 1", "[train]\nmomentum = 1\n" + GOOD, [], ["train.momentum", "less than 1"]),
    ("seed negative", "seed = -1\n" + GOOD, [], ["seed is -1", "from 0"]),
    *(
        []
        if torch.cuda.is_available()
        else [("no GPU", 'device = "cuda"\n' + GOOD, [], ["device is 'cuda'", "no GPU"])]
    ),
    ("unknown device", 'device = "tpu"\n' + GOOD, [], ["device is 'tpu'", "'cuda'"]),
    ("threads 0", "threads = 0\n" + GOOD, [], ["threads is 0"]),
    ("name with a slash", 'name = "../x"\n' + GOOD, [], ["name is '../x'", "letters"]),
    ("unknown model", '[model]\nname = "resnet21"\n' + GOOD, [], ["model.name", "'resnet20'", "cnn"]),
    ("unknown norm", '[model]\nnorm = "layer"\n' + GOOD, [], ["model.norm", "'group'"]),
    ("width 0", "[model]\nwidth = 0\n" + GOOD, [], ["model.width is 0"]),
    ("unknown data", '[data]\nname = "digit"\n' + GOOD, [], ["data.name", "'digits'"]),
    ("data missing", '[data]\nname = "cifar10"\n' + GOOD, [], ["data.name", "cifar10", "download"]),
    ("data folder missing", GOOD, ["--data-dir", "nowhere"], ["data.dir", "nowhere"]),
    ("image folder missing", '[data]\nname = "imagefolder:nowhere"\n' + GOOD, [], ["data.name", "nowhere"]),
    ("image too small", '[data]\nimage_size = 16\n[model]\nname = "vgg11"\n' + GOOD, [], ["data.image_size", "32"]),
    ("unknown split", '[partition]\nkind = "random"\n' + GOOD, [], ["partition.kind", "'iid'"]),
    ("alpha 0", "[partition]\nalpha = 0.0\n" + GOOD, [], ["partition.alpha"]),
    ("clients 0", "[partition]\nclients = 0\n" + GOOD, [], ["partition.clients is 0"]),
    ("more clients than images", "[partition]\nclients = 5000\n" + GOOD, [], ["partition.clients is 5000", "1442"]),
    ("impossible least", "[partition]\nmin_samples = 500\n" + GOOD, [], ["partition", "min_samples"]),
    (
        "more classes a client than there are",
        '[partition]\nkind = "shards"\nclasses_per_client = 11\n' + GOOD,
        [],
        ["partition.classes_per_client", "10"],
    ),
    (
        "more clients a round than there are",
        "[partition]\nclients = 4\n[train]\nclients_per_round = 5\n" + GOOD,
        [],
        ["train.clients_per_round is 5", "partition.clients", "4"],
    ),
    ("batch too large", "[train]\nbatch_size = 2000\n" + GOOD, [], ["train.batch_size is 2000", "1442"]),
    (
        "batch of one with batch norm at one pixel",
        '[data]\nimage_size = 8\n[model]\nname = "resnet18"\nwidth = 0.1\n[train]\nbatch_size = 1\n' + GOOD,
        [],
        ["train.batch_size is 1", "group"],
    ),
    ("unknown wire type", '[wire]\nvalues = "fp8"\n' + GOOD, [], ["wire.values", "'fp16'"]),
    ("--set without a value", GOOD, ["--set", "train.lr"], ["--set", "table.key=value"]),
    ("--set of an unknown key", GOOD, ["--set", "train.lrr=1"], ["train.lrr", "'lr'"]),
    ("--set out of range", GOOD, ["--set", "train.lr=-.5"], ["train.lr is -0.5"]),
    ("--set into a value", "seed = 1\n" + GOOD, ["--set", "seed.x=1"], ["seed", "not a table"]),
    ("--seed negative", GOOD, ["--seed", "-1"], ["seed is -1"]),
    ("--seed no number", GOOD, ["--seed", "x"], ["--seed", "integer"]),
    ("unknown option", GOOD, ["--rounds", "3"], ["--rounds"]),
    ("unknown format", GOOD, ["--format", "xml"], ["--format", "xml"]),
]


def assert_one_sentence(code: int, out: str, err: str, words: list[str], folder: Path) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(path.name for path in folder.iterdir()) == ["trial.toml"]


@pytest.mark.parametrize(("text", "arguments", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gets_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSPARSE_DATA", raising=False)
    (tmp_path / "trial.toml").write_text(text)
    code = main(["run", "trial.toml", *arguments])
    assert_one_sentence(code, *capsys.readouterr(), words, tmp_path)


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("[train]\nlr = -1\n" + GOOD, [], ["train.lr is -1"]),
        ('[method]\nname = "fedtinny"\n', [], ["method.name", "fedtiny"]),
        ('[data]\nname = "cifar10"\n' + GOOD, [], ["data.name", "cifar10"]),
    ],
)
def test_bad_input_in_a_process_of_its_own(tmp_path: Path, text: str, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "trial.toml").write_text(text)
    environment = {key: value for key, value in os.environ.items() if key != "FEDSPARSE_DATA"}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fedsparse", "run", "trial.toml", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert_one_sentence(done.returncode, done.stdout, done.stderr, words, tmp_path)


def test_an_order_to_fail_that_cannot_be_read_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.toml").write_text(GOOD)
    monkeypatch.setenv(faults.VARIABLE, "0:one:train:kill")
    faults.planned.cache_clear()
    try:
        code = main(["run", "trial.toml"])
    finally:
        monkeypatch.undo()
        faults.planned.cache_clear()
    words = ["FEDSPARSE_FAULT has '0:one:train:kill' but must be rank:round:point:kind", "manifest", "exit0"]
    assert_one_sentence(code, *capsys.readouterr(), words, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.toml", None, ["absent.toml", "does not exist"]),
        ("bytes.toml", b"\xff\xfe", ["bytes.toml", "UTF-8"]),
        (".", None, ["is a folder"]),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["run", name]) == 2
    sentence = capsys.readouterr().err
    assert all(word in sentence for word in words)


def test_a_method_that_cannot_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vectors of 7 rows do not divide the 32 channels of the first layer; only the method can know that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.toml").write_text(GOOD + "density = 0.1\ngranularity = 7\n")
    code = main(["run", "trial.toml", "--quiet"])
    assert_one_sentence(code, *capsys.readouterr(), ["granularity"], tmp_path)


@pytest.mark.parametrize("arguments", [["--out", "taken"], ["--out", "taken/file"], ["--out", "taken/file/below"]])
def test_out_must_be_new_or_empty(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "file").write_text("mine")
    assert main(["run", "pair/dense.toml", *arguments]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: --out taken")
    assert sentence.count("\n") == 1
    assert [path.name for path in (here / "taken").iterdir()] == ["file"]
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 4\n[partition]\nclients = 4\n", ["pair/sparse.toml", "seed is 4 but 3", "pair/dense.toml"]),
        ("seed = 3\n[partition]\nclients = 4\nalpha = 0.1\n", ["partition.alpha is 0.1 but 0.5"]),
        ("seed = 3\n[data]\ntrain_limit = 100\n", ["data.train_limit is 100 but not set"]),
        ('name = "dense"\nseed = 3\n[partition]\nclients = 4\n', ["name is 'dense'", "already"]),
        ("seed = 3\n[partition]\nclients = 4\n[train]\nclients_per_round = 2\n", ["clients_per_round is 2 but 4"]),
        ("seed = 3\n[partition]\nclients = 4\n[train]\nlr = -1\n", ["pair/sparse.toml", "train.lr is -1"]),
    ],
)
def test_what_cannot_be_compared(here: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]) -> None:
    (here / "pair" / "sparse.toml").write_text(text + GOOD)
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert all(word in sentence for word in words), sentence
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("command", "methods", "words"),
    [
        ("run", '[[method]]\nname = "fedavg"\n', ["several.toml holds several methods", "fedsparse compare"]),
        ("compare", "method = []\n", ["several.toml", "method is an empty list"]),
        ("compare", '[[method]]\nname = "fedavg"\n[[method]]\nname = "fedavg"\n', ["'fedavg', which another"]),
        ("compare", '[[method]]\nname = "fedavg"\nrun = "a/b"\n', ["name is 'a/b'"]),
        ("compare", "method = [1]\n", ["method is 1 but must be a table"]),
    ],
)
def test_several_methods_that_cannot_be_run(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, methods: str, words: list[str]
) -> None:
    (here / "several.toml").write_text(methods)
    assert main([command, "several.toml"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert all(word in sentence for word in words), sentence


def test_reports_of_what_is_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in (("pair", "no run's folder"), ("absent", "not a folder")):
        assert main(["report", folder]) == 2
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1
        assert words in sentence
