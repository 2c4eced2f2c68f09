"""Several seeds as one row and one line, and what a target accuracy took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invented_runs import write_run

from fedsparse.report import read_runs
from fedsparse.report.groups import cost_of_target, grouped, spread
from fedsparse.report.plots import PLOTS
from fedsparse.report.records import RunRecord
from fedsparse.report.style import styled
from fedsparse.report.table import Comparison


def run_of(label: str, accuracies: list[float | None], opening: float = 0.0, **result: Any) -> RunRecord:
    """A run of 100 bytes down, 50 up and 2 seconds a round."""
    rounds = [
        {"round": t, "accuracy": a, "bytes_down": 100, "bytes_up": 50, "seconds": 2.0} for t, a in enumerate(accuracies)
    ]
    facts = {"method": label, "status": "complete", "opening": {"seconds": opening}, "accuracy": accuracies[-1]}
    return RunRecord(Path(), label, facts | result, rounds, {})


def test_spread_by_hand() -> None:
    """Mean of 1, 2, 6 is 3; squares of the distances 4 + 1 + 9 = 14, over 2: deviation sqrt(7)."""
    found = spread([1.0, 2.0, None, 6.0])
    assert found is not None
    assert (found.mean, found.deviation) == (3.0, pytest.approx(7**0.5))
    assert spread([5.0]).deviation is None  # type: ignore[union-attr]
    assert spread([None]) is None


def test_the_cost_of_a_target_counts_rounds_from_one_and_what_came_before() -> None:
    """The target .6 is first met by the test after the third round: 3 rounds, 450 bytes, 1 + 6 seconds."""
    run = run_of("a", [0.1, None, 0.6, 0.9], opening=1.0)
    assert cost_of_target(run, 0.6) == {"rounds": 3, "bytes": 450, "seconds": 7.0}
    assert cost_of_target(run, 0.95) == {"rounds": None, "bytes": None, "seconds": None}


def test_a_target_that_training_before_round_0_reached_took_no_round() -> None:
    """Before round 0: 7 bytes down, 5 up, 1 second, accuracy .6; the tests after rounds 1 and 2 say .5 and .7."""
    opening = {"seconds": 1.0, "bytes_down": 7, "bytes_up": 5, "accuracy": 0.6}
    run = run_of("prunefl", [0.5, 0.7])
    run.result["opening"] = opening
    assert cost_of_target(run, 0.6) == {"rounds": 0, "bytes": 12, "seconds": 1.0}
    assert cost_of_target(run, 0.65) == {"rounds": 2, "bytes": 300, "seconds": 5.0}
    for target, rounds in ((0.6, "0 (from 60.0 %)"), (0.65, "2 (from 60.0 %)")):
        assert Comparison([run], target).rows()[0][-3] == rounds
    assert Comparison([run_of("fedavg", [0.7])], 0.6).rows()[0][-3] == "1", "nothing was trained before"


def test_rows_are_means_over_seeds() -> None:
    """a: accuracies .5 and .7: mean .6, deviation .1414; .5 is reached after 2 and 1 rounds: 1.5 with .707. b: one."""
    runs = [run_of("a", [0.4, 0.5]), run_of("b", [0.3, 0.4]), run_of("a", [0.6, 0.7])]
    comparison = Comparison(runs, target=0.5)
    first, second = comparison.table_dicts()
    assert (first["name"], first["seeds"], second["seeds"]) == ("a", 2, 1)
    assert first["accuracy"] == {"mean": pytest.approx(0.6), "deviation": pytest.approx(0.02**0.5)}
    assert first["rounds_to_target"] == {"mean": 1.5, "deviation": pytest.approx(0.5**0.5)}
    assert second["rounds_to_target"] is None
    a, b = (dict(zip(comparison.columns(), row)) for row in comparison.rows())
    assert (a["run"], a["accuracy"], a["rounds to 50 %"]) == (
        "a (2 seeds)",
        "60.0 % \u00b1 14.1 %",
        "1.5 \u00b1 0.707",
    )
    assert (b["run"], b["accuracy"], b["rounds to 50 %"]) == ("b", "40.0 %", "\u2013")
    assert comparison.markdown().count("\n") == 4


def test_a_target_that_some_seeds_missed_has_no_mean() -> None:
    comparison = Comparison([run_of("a", [0.4, 0.5]), run_of("a", [0.1, 0.2])], target=0.5)
    assert comparison.rows()[0][-3:] == ["\u2013 (1 of 2 did)", "\u2013", "\u2013"]


def test_settings_of_training_that_differ_are_named() -> None:
    runs = [run_of(label, [0.5]) for label in ("a", "b", "c")]
    for run, epochs in zip(runs, (5, 10, 5)):
        run.settings["train"] = {"epochs": epochs, "lr": 0.1}
    comparison = Comparison(runs)
    assert comparison.notes() == ["train.epochs differs: 5 for a, c; 10 for b."]
    assert comparison.markdown().endswith("|\n\ntrain.epochs differs: 5 for a, c; 10 for b.\n")
    runs[1].settings["train"] = {"epochs": 5, "lr": 0.1}
    assert Comparison(runs).notes() == []


def test_text_gets_a_column_of_perplexity() -> None:
    comparison = Comparison([run_of("a", [0.4], perplexity=12.345), run_of("b", [0.4])])
    assert comparison.columns()[3] == "perplexity"
    assert [row[3] for row in comparison.rows()] == ["12.35", "\u2013"]


def test_seeds_of_one_configuration_are_one_line_with_a_band(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"s{seed}", "tiny", "fedtiny", 0.1, ceiling=0.8 + 0.05 * seed, seed=seed)
        for seed in (1, 2, 3)
    ]
    for seed, folder in zip((1, 2, 3), folders):
        (folder / "config.json").write_text(json.dumps({"seed": seed, "train": {"lr": 0.1}}))
    runs = read_runs(folders)
    assert [run.label for run in runs] == ["tiny"] * 3
    with styled():
        axes = PLOTS["accuracy_over_rounds"](runs).axes[0]  # type: ignore[union-attr]
    (line,) = axes.get_lines()
    assert list(line.get_ydata()) == pytest.approx([sum(a) / 3 for a in zip(*(run.series("accuracy") for run in runs))])
    assert len(axes.collections) == 1


def test_other_settings_under_one_name_are_other_runs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"s{seed}", "tiny", "fedtiny", 0.1, seed=seed) for seed in (1, 2)]
    for lr, folder in zip((0.1, 0.2), folders):
        (folder / "config.json").write_text(json.dumps({"seed": 1, "train": {"lr": lr}}))
    assert len(grouped(read_runs(folders))) == 2
