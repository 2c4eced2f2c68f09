"""Reports from recorded runs: what is read, what is drawn, what the page holds."""

from __future__ import annotations

import base64
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from invented_runs import write_run
from matplotlib.colors import to_rgb

from fedsparse.report import RecordError, read_runs, write_report
from fedsparse.report.plots import PLOTS
from fedsparse.report.records import RunRecord
from fedsparse.report.style import line_style, styled
from fedsparse.report.table import COLUMNS, Comparison
from fedsparse.report.units import bytes_text, count_text, percent_text, seconds_text

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_comparison_is_one_file_and_its_figures(three_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    page = write_report(read_runs(three_runs), out, "three <runs>").read_text()
    assert {path.name for path in out.iterdir()} == {"report.html", "comparison.md", *(f"{name}.png" for name in PLOTS)}
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    assert "three &lt;runs&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)|https?://", page)
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert sorted(map(base64.b64decode, embedded)) == sorted(path.read_bytes() for path in out.glob("*.png"))
    for word in ("fixed-mask", "fedtiny", "values holds a NaN", *COLUMNS):
        assert word in page


def test_one_run_shows_its_configuration(three_runs: list[Path]) -> None:
    (three_runs[2] / "config.json").write_text(json.dumps({"seed": 1, "train": {"lr": 0.5, "width": None}}))
    page = write_report(read_runs(three_runs[2:]), three_runs[2], "one").read_text()
    assert "train.lr = 0.5" in page
    assert "train.width" not in page


def test_lost_ranks_are_named_and_so_is_what_failed_before_the_first_round(three_runs: list[Path]) -> None:
    path = three_runs[2] / "result.json"
    result = json.loads(path.read_text())
    lost = {"rank": 4, "client": None, "reason": "lost: its process ended"}
    closing = {"incidents": [{"rank": 1, "client": None, "reason": "lost: gone when the run was over"}]}
    ranks = {"ranks": 9, "lost_ranks": [1, 4], "opening": {"incidents": [lost]}, "closing": closing}
    path.write_text(json.dumps(result | ranks))
    page = write_report(read_runs(three_runs[2:]), three_runs[2], "one").read_text()
    assert "<th>MPI ranks</th><td>9, lost: 1, 4</td>" in page
    assert "<td>opening</td><td>rank 4</td><td>lost: its process ended</td>" in page
    assert "<td>closing</td><td>rank 1</td><td>lost: gone when the run was over</td>" in page
    several = write_report(read_runs(three_runs), three_runs[2], "several").read_text()
    assert several.count("MPI ranks: 9, lost: 1, 4; ") == several.count("MPI ranks") == 1


def test_curves_show_the_records(three_runs: list[Path]) -> None:
    runs = read_runs(three_runs)
    with styled():
        axes = PLOTS["accuracy_over_rounds"](runs).axes[0]  # type: ignore[union-attr]
    assert [line.get_label() for line in axes.get_lines()] == ["dense", "fixed-mask", "fedtiny"]
    assert list(axes.get_lines()[1].get_ydata()) == runs[1].series("accuracy")
    assert axes.get_title(loc="left") == "Test accuracy over rounds"
    assert axes.get_xlabel() == "round"


def test_bytes_add_up_along_their_axis(three_runs: list[Path]) -> None:
    runs = read_runs(three_runs)
    with styled():
        axes = PLOTS["accuracy_over_bytes"](runs).axes[0]  # type: ignore[union-attr]
    for line, run in zip(axes.get_lines(), runs):
        assert line.get_xdata()[-1] == run.result["bytes_down"] + run.result["bytes_up"]
    assert axes.get_xscale() == "log"


def test_time_counts_what_came_before_the_first_round(three_runs: list[Path]) -> None:
    """The fixture's opening takes 2.5 s, so the first point lies at 2.5 s and one round."""
    run = read_runs(three_runs)[0]
    with styled():
        line = PLOTS["accuracy_over_seconds"]([run]).axes[0].get_lines()[0]  # type: ignore[union-attr]
    assert line.get_xdata()[0] == 2.5 + run.rounds[0]["seconds"]


@pytest.mark.parametrize("name", list(PLOTS))
@pytest.mark.parametrize("count", [1, 3])
def test_labels_stay_inside_the_figure_and_apart(three_runs: list[Path], name: str, count: int) -> None:
    with styled():
        figure = PLOTS[name](read_runs(three_runs[-count:]))
        assert figure is not None
        figure.canvas.draw()
        whole = figure.bbox
        for axes in figure.axes:
            titles = [axes.title, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
            texts = [axes.xaxis.label, axes.yaxis.label, *titles]
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            assert boxes or axes.get_label() == "<colorbar>"
            assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 for box in boxes)
            assert all(whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)
            assert not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[:at])
            ticks = [tick.get_window_extent() for tick in axes.get_xticklabels() if tick.get_rotation() == 0]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(ticks))


def test_an_unfinished_run_is_read_from_its_rounds(three_runs: list[Path]) -> None:
    folder = three_runs[2]
    (folder / "result.json").unlink()
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 40, "accu')
    run = read_runs([folder])[0]
    assert len(run.rounds) == 40
    assert run.result["status"] == "interrupted"
    assert run.result["bytes_up"] == sum(run.series("bytes_up"))
    assert write_report([run], folder, "unfinished").exists()


def test_broken_records_are_refused(three_runs: list[Path], tmp_path: Path) -> None:
    lines = (three_runs[0] / "rounds.jsonl").read_text().splitlines()
    (three_runs[0] / "rounds.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:]]))
    with pytest.raises(RecordError, match=r"line 4 of .*rounds\.jsonl"):
        read_runs(three_runs)
    (three_runs[1] / "result.json").write_text("[1]")
    with pytest.raises(RecordError, match="not an object"):
        read_runs(three_runs[1:])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "rounds.jsonl").write_text("")
    with pytest.raises(RecordError, match="no round is recorded"):
        write_report(read_runs([empty]), empty, "empty")


def test_runs_of_one_name_are_told_apart(three_runs: list[Path]) -> None:
    assert len({run.label for run in read_runs([three_runs[0], three_runs[0]])}) == 1
    second = three_runs[0].with_name("again")
    second.mkdir()
    for path in three_runs[0].iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    assert len({run.label for run in read_runs([three_runs[0], second])}) == 2


def test_ratios_are_to_the_first_run() -> None:
    """(10 + 30) / (100 + 60) = 0.25; 20 / 80 multiply-adds = 0.25; what is missing stays missing."""
    first = {"bytes_down": 100, "bytes_up": 60, "macs": 80, "dense_macs": 80}
    second = {"bytes_down": 10, "bytes_up": 30, "macs": 20, "dense_macs": 80}
    runs = [RunRecord(Path(), label, result, [], {}) for label, result in (("a", first), ("b", second), ("c", {}))]
    rows = Comparison(runs).as_dicts()
    assert [(row["bytes_ratio"], row["macs_share"]) for row in rows] == [(1.0, 1.0), (0.25, 0.25), (None, None)]


def test_units() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 9994, 99_940, 999_499, 999_600, 1_910_000)] == [
        "0 B", "999 B", "1.00 kB", "9.99 kB", "99.9 kB", "999 kB", "1.00 MB", "1.91 MB",
    ]  # fmt: skip
    assert [count_text(n) for n in (12, 556_000_000)] == ["12", "556 M"]
    assert [seconds_text(s) for s in (0.0123, 0.5, 12.34, 100, 3725)] == [
        "12.3 ms", "0.5 s", "12.3 s", "1 min 40 s", "62 min 05 s",
    ]  # fmt: skip
    assert percent_text(0.1234) == "12.3 %"
    assert {bytes_text(None), count_text(None), percent_text(None), seconds_text(None)} == {"\u2013"}


@pytest.fixture
def alike(tmp_path: Path) -> list[RunRecord]:
    """Twelve runs, as many as there are methods and a few more, whose curves coincide."""
    return read_runs([write_run(tmp_path / f"m{at}", f"m{at}", "fedtiny", 0.1, rounds=24) for at in range(12)])


@pytest.mark.parametrize(
    "name",
    ["accuracy_over_rounds", "accuracy_over_bytes", "accuracy_over_seconds", "bytes_per_round", "layer_densities"],
)
def test_runs_that_coincide_are_all_seen(alike: list[RunRecord], name: str) -> None:
    """Each run's colour, or one that edges blend it into, covers 20 pixels of every panel, the legend apart."""
    with styled():
        figure = PLOTS[name](alike)
        assert figure is not None
        figure.canvas.draw()
        image = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    for axes in figure.axes:
        box = axes.get_window_extent()
        height = image.shape[0]
        panel = image[int(height - box.y1) : int(height - box.y0), int(box.x0) : int(box.x1)]
        for line in axes.get_lines():
            colour = 255 * np.array(to_rgb(line.get_color()))
            near = np.abs(panel - colour).max(-1) <= 12
            assert near.sum() >= 20, line.get_label()


def test_every_run_has_a_style_of_its_own() -> None:
    assert len({line_style(at, 10)["color"] for at in range(12)}) == 12
    styles = [line_style(at, 10) for at in range(100)]
    assert len({(style["color"], str(style["linestyle"]), style["marker"]) for style in styles}) == 100
