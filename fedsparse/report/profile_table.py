"""The tables of a profile, for the terminal: what is held and kept, and what each layer costs."""

from __future__ import annotations

from rich.table import Table

from fedsparse.report.adjustment import AdjustmentProfile
from fedsparse.report.profile import StepProfile
from fedsparse.report.step_recorder import LayerCost
from fedsparse.report.units import DASH, bytes_text, count_text, seconds_text

ROWS = (
    ("weights", "weights"),
    ("index arrays, statistics", "indices"),
    ("masks", "masks"),
    ("optimizer state", "optimizer"),
    ("held between steps", "held"),
    ("gradients", "gradients"),
    ("kept for the backward pass", "kept"),
    ("the most during a step", "peak"),
)


def summary_table(steps: list[StepProfile]) -> Table:
    """Bytes by kind and seconds of a step, a column for each model, with ratios to the last model before the method."""
    table = Table(title="One training step")
    table.add_column("")
    for step in steps:
        table.add_column(step.name, justify="right")
    rival, own = steps[-2], steps[-1]
    table.add_column(f"of {rival.name}", justify="right")
    for head, field in ROWS:
        sizes = [getattr(step, field) for step in steps]
        table.add_row(head, *map(bytes_text, sizes), _ratio(getattr(own, field), getattr(rival, field)))
    table.add_row("seconds of a step", *(seconds_text(s.seconds) for s in steps), _ratio(own.seconds, rival.seconds))
    return table


def adjustment_table(found: AdjustmentProfile) -> Table:
    """Peak bytes and seconds of a client in an ordinary and in an adjustment round, and of the server's update."""
    table = Table(title=f"Round {found.round} adjusts the masks: one client, one minibatch")
    for head in ("", "the most alive, model included", "seconds"):
        table.add_column(head, justify="left" if not head else "right")
    rows = (("client, ordinary round", "ordinary client"), ("client, adjustment round", "client"))
    for head, part in (*rows, ("server's update", "server")):
        table.add_row(head, bytes_text(found.peaks[part]), seconds_text(found.times[part]))
    return table


def layer_table(steps: list[StepProfile]) -> Table:
    """A row for each layer of the method's model that costs anything, beside the dense one's figures."""
    dense, own = steps[0], steps[-1]
    table = Table(title=f"Layers: dense > {own.name}")
    for head in ("layer", "weights", "kept", "forward", "backward"):
        table.add_column(head, justify="left" if head == "layer" else "right")
    for name, cost in own.layers.items():
        before, (active, all) = dense.layers.get(name), own.active.get(name, (0, 0))
        weights = DASH if not all else count_text(all) if active == all else f"{count_text(all)} > {count_text(active)}"
        table.add_row(
            name,
            weights,
            f"{_size(before)} > {_size(cost)}",
            f"{_time(before, 'forward')} > {_time(cost, 'forward')}",
            f"{_time(before, 'backward')} > {_time(cost, 'backward')}",
        )
    return table


def _ratio(own: float, rival: float) -> str:
    return f"{own / rival:.2f}" if rival else DASH


def _size(cost: LayerCost | None) -> str:
    return DASH if cost is None else bytes_text(cost.kept)


def _time(cost: LayerCost | None, which: str) -> str:
    return DASH if cost is None else f"{1000 * getattr(cost, which):.2f} ms"
