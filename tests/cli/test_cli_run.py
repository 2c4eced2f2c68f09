"""`run` and `compare` around a fake loop: folders, progress, tables, JSON, interruption, full disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from fake_loop import FakeLoop

from fedsparse.cli import main
from fedsparse.federated.errors import RunError

Capture = pytest.CaptureFixture[str]


def test_run_writes_a_numbered_folder(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    for number in (1, 2):
        assert main(["run", "pair/dense.toml"]) == 0
        folder = here / "runs" / f"dense-3-{number}"
        assert {path.name for path in folder.iterdir()} >= {"config.json", "result.json", "rounds.jsonl", "report.html"}
        assert f"runs/dense-3-{number}" in capsys.readouterr().out.replace("\n", "")


def test_run_writes_the_whole_configuration(here: Path, fake_loop: FakeLoop) -> None:
    assert main(["run", "pair/sparse.toml", "--set", "train.lr=0.5", "--seed", "7", "--out", "new/one", "-q"]) == 0
    config = json.loads((here / "new" / "one" / "config.json").read_text())
    assert config["train"]["lr"] == 0.5
    assert config["seed"] == 7
    assert config["method"]["name"] == "fedavg"
    assert config["method"]["density"] == 0.1
    assert fake_loop.seen[0].training.lr == 0.5


def test_an_empty_out_folder_is_taken(here: Path, fake_loop: FakeLoop) -> None:
    (here / "empty").mkdir()
    assert main(["run", "pair/dense.toml", "--out", "empty", "-q"]) == 0
    assert (here / "empty" / "result.json").exists()


def test_progress_is_a_line_a_round_off_a_terminal(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["run", "pair/dense.toml"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(
        "dense: round 2/4  accuracy 60.0 %  density 100.0 %  1.00 MB down 1.00 MB up  0.25 s  1 rejected  5.00 MB memory"
    )
    assert lines[0].startswith("dense: round 1/4  accuracy \u2013")
    assert all(line.endswith(" left") for line in lines)


def test_progress_is_a_bar_on_a_terminal(
    here: Path, fake_loop: FakeLoop, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["run", "pair/dense.toml"]) == 0
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "accuracy 80.0 %" in shown


def test_quiet_shows_no_progress(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["run", "pair/dense.toml", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "80.0 %" in out


def test_json_is_alone_on_standard_output(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["run", "pair/dense.toml", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["bytes_down"], result["folder"]) == ("complete", 4_000_000, "runs/dense-3-1")


def test_compare_puts_measured_costs_side_by_side(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "-q"]) == 0
    table = capsys.readouterr().out
    sparse = " ".join(line for line in table.splitlines() if line.startswith("\u2502 sparse"))
    for cell in ("fedavg", "80.0 %", "10.0 %", "200 k (10 %)", "0.25 s", "5.00 MB", "400 kB", "0.1 x"):
        assert cell in sparse
    assert (here / "runs" / "pair" / "report.html").exists()
    assert (here / "runs" / "pair" / "sparse" / "result.json").exists()


def test_compare_draws_the_same_split_and_model_for_all(here: Path, fake_loop: FakeLoop) -> None:
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "-q"]) == 0
    dense, sparse = fake_loop.seen
    assert dense.train is sparse.train
    assert all((a == b).all() for a, b in zip(dense.parts, sparse.parts))
    assert all((a == b).all() for a, b in zip(dense.model.parameters(), sparse.model.parameters()))


def test_compare_takes_a_fresh_folder_every_time(here: Path, fake_loop: FakeLoop) -> None:
    for folder in ("pair", "pair-2", "pair-3"):
        assert main(["compare", "pair/dense.toml", "-q"]) == 0
        assert (here / "runs" / folder / "report.html").exists()


SEVERAL = """
seed = 3
[partition]
clients = 4
[train]
rounds = 4
[[method]]
run = "dense"
name = "fedavg"
[[method]]
name = "fedtiny"
density = 0.1
"""


def test_one_file_holds_several_methods_and_the_table_several_seeds(
    here: Path, fake_loop: FakeLoop, capsys: Capture
) -> None:
    """The fake accuracy after round 2 is .6, so the target is reached after two rounds under both seeds."""
    (here / "both.toml").write_text(SEVERAL)
    arguments = ["--seeds", "2", "--target", "0.6", "--out", "out", "-q", "--format", "json"]
    assert main(["compare", "both.toml", *arguments]) == 0
    folders = ["dense-seed3", "fedtiny-seed3", "dense-seed4", "fedtiny-seed4"]
    assert sorted(path.name for path in (here / "out").iterdir() if path.is_dir()) == sorted(folders)
    assert [(e.name, e.method.name, e.seed) for e in fake_loop.seen] == [
        ("dense", "fedavg", 3), ("fedtiny", "fedtiny", 3), ("dense", "fedavg", 4), ("fedtiny", "fedtiny", 4),
    ]  # fmt: skip
    same = zip(fake_loop.seen[2].model.parameters(), fake_loop.seen[3].model.parameters())
    assert all((a == b).all() for a, b in same)
    table = json.loads(capsys.readouterr().out)["table"]
    assert [(row["name"], row["seeds"], row["rounds_to_target"]["mean"]) for row in table] == [
        ("dense", 2, 2), ("fedtiny", 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "dense", "fedtiny", "told"),
    [
        ("method.density=0.2", 1.0, 0.2, "method.density=0.2 does not hold for dense, which do not set it\n"),
        ("method.fedtiny.density=0.3", 1.0, 0.3, ""),
        ("method.dense.density=0.3", 0.3, 0.1, ""),
    ],
)
def test_an_override_of_several_methods(
    here: Path, fake_loop: FakeLoop, capsys: Capture, override: str, dense: float, fedtiny: float, told: str
) -> None:
    """A key without the name of a run holds for the tables that have it: the dense run stays dense."""
    (here / "both.toml").write_text(SEVERAL)
    assert main(["compare", "both.toml", "--set", override]) == 0
    assert [experiment.method.density for experiment in fake_loop.seen] == [dense, fedtiny]
    lines = [line for line in capsys.readouterr().err.splitlines(keepends=True) if ": round " not in line]
    assert "".join(lines) == told


def test_an_override_of_a_key_that_no_method_has_holds_for_all(here: Path, fake_loop: FakeLoop) -> None:
    (here / "both.toml").write_text(SEVERAL.replace('name = "fedavg"', 'name = "fedavg"\ndensity = 0.1'))
    assert main(["compare", "both.toml", "--set", "method.granularity=4", "-q"]) == 0
    assert [experiment.method.granularity for experiment in fake_loop.seen] == [4, 4]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.fedtiny.poool=3", ["method.poool", "'pool'", "in [[method]] fedtiny"]),
        ("method.pool=3", ["method.pool", "in [[method]] dense"]),
        ("method.tiny.pool=3", ["no [[method]] is named tiny; they are dense, fedtiny"]),
    ],
)
def test_an_override_that_a_method_has_not(here: Path, capsys: Capture, override: str, words: list[str]) -> None:
    (here / "both.toml").write_text(SEVERAL)
    assert main(["compare", "both.toml", "--set", override]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert all(word in sentence for word in words), sentence
    assert not (here / "runs").exists()


def test_compare_as_json(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "--format", "json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["bytes_ratio"] for run in runs] == [1.0, 0.1]
    assert [run["macs_share"] for run in runs] == [1.0, 0.1]


@pytest.mark.parametrize(("columns", "tables"), [(None, 2), ("60", 4), ("100", 2), ("120", 2), ("200", 1)])
def test_tables_fit_the_terminal_and_the_file_has_all_columns(
    here: Path,
    fake_loop: FakeLoop,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    columns: str | None,
    tables: int,
) -> None:
    """At 100 columns, the width where there is no terminal, the bytes and the target go into a second table."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "--target", "0.6", "-q"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("\u2502")[1:-1] for line in out.splitlines() if line.startswith("\u2502 sparse")]
    assert len(rows) == tables
    assert max(map(len, out.splitlines())) <= int(columns or 100)
    shown = [cell.strip() for row in rows for cell in row if cell.strip() != "sparse"]
    written = (here / "runs" / "pair" / "comparison.md").read_text().splitlines()[-1].strip("| ").split(" | ")
    assert shown == written[1:]
    assert "table: runs/pair/comparison.md" in out


def test_an_interrupted_run_keeps_its_rounds(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = KeyboardInterrupt(), 2
    assert main(["run", "pair/dense.toml", "--format", "json"]) == 130
    assert json.loads(capsys.readouterr().out)["rounds"] == 2
    folder = here / "runs" / "dense-3-1"
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["rounds"], result["accuracy"]) == ("interrupted", 2, 0.6)
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2


def test_compare_stops_at_an_interrupted_run(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = KeyboardInterrupt(), 0
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "-q"]) == 130
    assert "dense (interrupted)" in capsys.readouterr().out
    assert not (here / "runs" / "pair" / "sparse").exists()


@pytest.mark.parametrize("fail_at", [0, 2])
def test_compare_goes_on_after_a_run_that_diverged(
    here: Path, fake_loop: FakeLoop, capsys: Capture, fail_at: int
) -> None:
    """Without a round it leaves no folder; with some they are kept and shown."""
    fake_loop.failure, fake_loop.fail_at, fake_loop.fails = RunError("it diverged"), fail_at, "dense"
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "--out", "out", "-q"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: dense: it diverged")
    assert err.count("\n") == 1
    assert "sparse" in out
    assert (here / "out" / "sparse" / "result.json").exists()
    assert (here / "out" / "dense").exists() == (fail_at > 0)


def test_a_comparison_without_a_record_leaves_no_folder(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = RunError("it diverged"), 0
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "--out", "out", "-q"]) == 1
    assert capsys.readouterr().err == "error: dense: it diverged; sparse: it diverged\n"
    assert not (here / "out").exists()


def test_a_full_disk_gets_one_sentence(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = OSError(errno.ENOSPC, "No space left on device"), 1
    assert main(["run", "pair/dense.toml", "-q"]) == 1
    out, err = capsys.readouterr()
    assert err == (
        "error: runs/dense-3-1 cannot be written: the disk is full; its rounds so far are kept, and "
        "`fedsparse resume runs/dense-3-1` goes on\n"
    )
    assert out == ""
    assert (here / "runs" / "dense-3-1" / "rounds.jsonl").exists()


def test_a_mistake_of_ours_is_not_hidden(here: Path, fake_loop: FakeLoop) -> None:
    fake_loop.failure, fake_loop.fail_at = ValueError("a mistake"), 1
    with pytest.raises(ValueError, match="a mistake"):
        main(["run", "pair/dense.toml", "-q"])


def test_report_is_drawn_again(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["compare", "pair/dense.toml", "pair/sparse.toml", "-q"]) == 0
    page = here / "runs" / "pair" / "report.html"
    page.unlink()
    assert main(["report", "runs/pair"]) == 0
    assert page.exists()
    assert main(["report", "runs/pair/dense", "runs/pair/sparse"]) == 2
    assert "holds a report already" in capsys.readouterr().err
    assert main(["report", "runs/pair/dense", "runs/pair/sparse", "--out", "both"]) == 0
    assert (here / "both" / "accuracy_over_bytes.png").exists()
