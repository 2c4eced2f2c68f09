"""The figures of a report; each takes the runs and returns a Figure, or None where no run recorded what it shows.

Runs that differ in the seed alone are one line: their mean, in a band of a standard deviation to each side. The figures
of single rounds and layers show the first of such runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from fedsparse.report.groups import Group, bytes_so_far, grouped, seconds_so_far
from fedsparse.report.memory_plot import memory_of_a_step
from fedsparse.report.records import RunRecord
from fedsparse.report.style import (
    beside,
    legend_below,
    line_style,
    logarithmic,
    panels,
    percent_axis,
    whole_numbers,
)

Plot = Callable[[list[RunRecord]], Figure | None]
# Beyond this ratio of the runs' totals, a linear axis would press the cheaper run against its end.
LOG_RATIO = 4.0
# More curves than this get a taller panel.
CROWD = 4


def accuracy_over_rounds(runs: list[RunRecord]) -> Figure | None:
    """Draw test accuracy over the rounds."""
    figure = accuracy_over(runs, round_numbers, "Test accuracy over rounds", "round")
    if figure is not None:
        whole_numbers(figure.axes[0])
    return figure


def accuracy_over_bytes(runs: list[RunRecord]) -> Figure | None:
    """Draw test accuracy over the bytes sent so far, in both directions and over all clients."""
    label = "bytes sent so far, down and up, all clients"
    figure = accuracy_over(runs, bytes_so_far, "Test accuracy over bytes sent", label, may_be_log=True)
    if figure is not None:
        figure.axes[0].xaxis.set_major_formatter(EngFormatter(unit="B"))
    return figure


def accuracy_over_seconds(runs: list[RunRecord]) -> Figure | None:
    """Draw test accuracy over wall-clock time."""
    label = "seconds since the start"
    return accuracy_over(runs, seconds_so_far, "Test accuracy over time", label, may_be_log=True)


def accuracy_over(
    runs: list[RunRecord],
    spent: Callable[[RunRecord], list[float]],
    title: str,
    label: str,
    may_be_log: bool = False,
) -> Figure | None:
    """Draw test accuracy over what a run has spent; `may_be_log` allows a logarithmic axis."""
    groups = grouped(runs)
    figure, (axes,) = panels(height=4.2 if len(groups) <= CROWD else 5.6)
    totals = []
    for at, group in enumerate(groups):
        xs, ys = curves(group, spent)
        if xs.size:
            style = line_style(at, xs.shape[1])
            mean, deviation = ys.mean(0), ys.std(0, ddof=1 if len(ys) > 1 else 0)
            axes.plot(xs.mean(0), mean, label=group.label, **style)
            if len(ys) > 1:
                band = mean - deviation, mean + deviation
                axes.fill_between(xs.mean(0), *band, color=style["color"], alpha=0.15, linewidth=0)
            totals.append(xs[:, -1].mean())
    if not totals:
        return None
    if may_be_log and max(totals) > LOG_RATIO * min(totals) > 0:
        axes.set_xscale("log")
        label += " (logarithmic)"
    axes.set(title=title, xlabel=label, ylabel="test accuracy")
    percent_axis(axes.yaxis)
    legend_below(figure, axes)
    return figure


def curves(group: Group, spent: Callable[[RunRecord], list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (what was spent, accuracy) at the tests that all runs of a group made: float64 [runs, tests] each."""
    tests = min(len(run.accuracies()) for run in group.runs)
    costs = [[spent(run)[place] for place, _ in run.accuracies()[:tests]] for run in group.runs]
    return np.array(costs), np.array([[accuracy for _, accuracy in run.accuracies()[:tests]] for run in group.runs])


def first_seeds(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the first run of each group."""
    return [group.runs[0] for group in grouped(runs)]


def bytes_per_round(runs: list[RunRecord]) -> Figure | None:
    """Draw the encoded bytes of every round: server to clients on the left, clients to server on the right."""
    runs = first_seeds(runs)
    figure, both = panels(columns=2)
    directions = (("bytes_down", "Down: server to clients"), ("bytes_up", "Up: clients to server"))
    drawn = []
    for axes, (key, title) in zip(both, directions):
        for at, run in enumerate(runs):
            values = run.series(key)
            if values:
                style = line_style(at, len(values)) | {"drawstyle": "steps-mid"}
                axes.plot(round_numbers(run), values, label=run.label, **style)
                drawn += values
        axes.set(title=title, xlabel="round")
        whole_numbers(axes)
    if not drawn:
        return None
    scale_bytes(both[0], drawn)
    legend_below(figure, both[0])
    return figure


def scale_bytes(axes: Axes, values: list[float]) -> None:
    """Start the y axis at zero, or make it logarithmic where the values lie far apart."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 2 * LOG_RATIO * min(positive):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
        axes.set_ylim(bottom=min(positive) / 1.5, top=max(positive) * 1.5)
    else:
        axes.set_ylim(bottom=0, top=1.08 * max(values, default=1) or 1)
    axes.set_ylabel("bytes a round, all clients")
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))


def layer_densities(runs: list[RunRecord]) -> Figure | None:
    """Draw each layer's density: over the rounds for one run, at the last round for several."""
    runs = first_seeds(runs)
    kept = [run for run in runs if run.rounds and run.rounds[-1].get("layer_densities")]
    if not kept:
        return None
    return density_map(kept[0]) if len(runs) == 1 else final_densities(runs)


def density_map(run: RunRecord) -> Figure:
    """Draw one run's layer densities as a heat map, input layer at the top."""
    names = list(run.rounds[-1]["layer_densities"])
    grid = np.array([[record["layer_densities"].get(name, np.nan) for record in run.rounds] for name in names])
    rounds = round_numbers(run)
    figure, (axes,) = panels(height=max(2.8, 1.6 + 0.22 * len(names)))
    image = axes.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        extent=(rounds[0] - 0.5, rounds[-1] + 0.5, len(names) - 0.5, -0.5),
    )
    axes.set(title="Density of each layer over rounds", xlabel="round")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(visible=False)
    whole_numbers(axes)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    percent_axis(bar.ax.yaxis)
    bar.set_label("active weights")
    return figure


def final_densities(runs: list[RunRecord]) -> Figure:
    """Draw the layer densities of several runs at their last round, the layers from input to output."""
    final = [run.rounds[-1].get("layer_densities") or {} if run.rounds else {} for run in runs]
    names = list(dict.fromkeys(name for densities in final for name in densities))
    figure, (axes,) = panels(height=4.8)
    for at, (run, densities) in enumerate(zip(runs, final)):
        if densities:
            style = line_style(at, 1) | {"linewidth": 1.0}
            xs = [names.index(name) + beside(at, len(runs)) for name in densities]
            axes.plot(xs, list(densities.values()), label=run.label, **style)
    axes.set(title="Density of each layer at the last round", ylabel="active weights")
    positive = [density for densities in final for density in densities.values() if density > 0]
    if positive and max(positive) > LOG_RATIO * min(positive):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    percent_axis(axes.yaxis)
    legend_below(figure, axes)
    return figure


def mask_change(runs: list[RunRecord]) -> Figure | None:
    """Draw the share of the active weights that a round made active."""
    runs = first_seeds(runs)
    figure, (axes,) = panels(height=3.6)
    changed = False
    for at, run in enumerate(runs):
        points = [(record["round"], record["mask_change"]) for record in run.rounds if record.get("mask_change")]
        if points:
            changed = True
            rounds, shares = zip(*points)
            xs = [number + beside(at, len(runs)) for number in rounds]
            style = line_style(at, 1) | {"linestyle": "none"}
            axes.vlines(xs, 0, shares, color=style["color"], linewidth=2)
            axes.plot(xs, shares, label=run.label, **style)
    if not changed:
        return None
    last = max(record["round"] for run in runs for record in run.rounds)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylim(bottom=0)
    axes.set(title="Mask change in a round", xlabel="round", ylabel="newly active / active weights")
    percent_axis(axes.yaxis)
    whole_numbers(axes)
    unchanged = [run.label for run in runs if not any(run.series("mask_change"))]
    if unchanged:
        axes.set_xlabel(f"round\n(mask never changed: {', '.join(unchanged)})")
    legend_below(figure, axes)
    return figure


def round_numbers(run: RunRecord) -> list[float]:
    """Return the numbers of the recorded rounds."""
    return run.series("round")


PLOTS: dict[str, Plot] = {
    "accuracy_over_rounds": accuracy_over_rounds,
    "accuracy_over_bytes": accuracy_over_bytes,
    "accuracy_over_seconds": accuracy_over_seconds,
    "bytes_per_round": bytes_per_round,
    "layer_densities": layer_densities,
    "mask_change": mask_change,
    "memory_of_a_step": memory_of_a_step,
}
