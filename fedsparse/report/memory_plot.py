"""The picture of memory over one training step, from `profile.json` as `fedsparse profile` writes it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from fedsparse.report.records import RecordError, RunRecord
from fedsparse.report.style import COLOURS, panels
from fedsparse.report.units import bytes_text, seconds_text

PROFILE = "profile.json"


def memory_of_a_step(runs: list[RunRecord]) -> Figure | None:
    """Draw memory over one step of the first run whose folder holds a profile."""
    folder = next((run.folder for run in runs if (run.folder / PROFILE).is_file()), None)
    return None if folder is None else memory_picture(read_profile(folder / PROFILE))


def read_profile(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a `profile.json`; RecordError where it is none."""
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        for step in steps:
            if not {"name", "held", "peak", "moments", "marks"} <= step.keys():
                raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{path} is no profile that `fedsparse profile` wrote") from None
    return list(steps)


def memory_picture(steps: list[dict[str, Any]]) -> Figure:
    """Draw bytes alive over the milliseconds of one step, a panel for each model, all with the same y axis.

    A panel of an adjustment round, where there is one, stands last: training, growth and report, the server's part.
    """
    columns = len(steps) if len(steps) < 4 else 2
    rows = math.ceil(len(steps) / columns)
    figure, axes = panels(columns, 4.2 if rows == 1 else 3.4, rows)
    for spare in axes[len(steps) :]:
        spare.set_visible(False)
    for at, (step, panel) in enumerate(zip(steps, axes)):
        colour = COLOURS[at % len(COLOURS)]
        times, sizes = outline(step["moments"])
        panel.fill_between(times, sizes, color=colour, alpha=0.25, linewidth=0)
        panel.plot(times, sizes, color=colour, linewidth=1.2)
        panel.axhline(step["held"], color="#444444", linestyle=":", linewidth=1.2)
        adjusts = "round" in step
        panel.annotate(
            f"{'the model alone' if adjusts else 'held between steps'} {bytes_text(step['held'])}",
            (times[-1] / 2, step["held"]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
            zorder=5,
        )
        for name, seconds in step["marks"].items():
            panel.axvline(1000 * seconds, color="#999999", linestyle="--", linewidth=1)
            panel.annotate(
                name,
                (1000 * seconds, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3, -4),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=8.5,
            )
        panel.set_title(f"{step['name']}: at most {bytes_text(step['peak'])}")
        panel.set_xlabel(f"ms ({'the round' if adjusts else 'a step'} unwatched takes {seconds_text(step['seconds'])})")
        panel.yaxis.set_major_formatter(EngFormatter(unit="B"))
        panel.set_ylim(0, 1.35 * max(other["peak"] for other in steps))
        panel.set_xlim(0, times[-1])
    for panel in axes[::columns]:
        panel.set_ylabel("alive, counted in the allocator")
    return figure


def outline(moments: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Return (ms, bytes) of the curve: the most between two moments stands half-way, what is alive at the moments."""
    times, sizes = [1000 * moments[0]["seconds"]], [moments[0]["live"]]
    for before, now in itertools.pairwise(moments):
        times += [500 * (before["seconds"] + now["seconds"]), 1000 * now["seconds"]]
        sizes += [max(now["peak"], before["live"]), now["live"]]
    return times, sizes
