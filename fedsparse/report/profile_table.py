"""The tables of a profile, for the terminal: what is held and kept, and what each layer costs."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedsparse.report.adjustment import AdjustmentProfile
from fedsparse.report.held import KINDS as HELD
from fedsparse.report.kept import KINDS as KEPT
from fedsparse.report.kept import OTHER
from fedsparse.report.profile import StepProfile
from fedsparse.report.step_recorder import LayerCost
from fedsparse.report.units import DASH, bytes_text, count_text, seconds_text

SHORT = {
    "optimizer": "optim.",
    "gradients": "grads",
    "activations": "activ.",
    "bfloat16": "bf16",
    "statistics": "stats",
}
HEADS = {kind: SHORT.get(kind, kind) for kind in (*HELD, *KEPT)}
"""Of the columns of the layers' bytes, by kind."""
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
        if field == "kept":
            _add_kinds(table, steps)
    table.add_row("seconds of a step", *(seconds_text(s.seconds) for s in steps), _ratio(own.seconds, rival.seconds))
    return table


def _add_kinds(table: Table, steps: list[StepProfile]) -> None:
    """Of what is kept, the sums of the layers' kinds."""
    for kind in (*KEPT, OTHER):
        sizes = [sum(cost.kept.get(kind, 0) for cost in step.layers.values()) for step in steps]
        if any(sizes):
            table.add_row(f"  {kind}", *map(bytes_text, sizes), _ratio(sizes[-1], sizes[-2]))


def adjustment_table(found: AdjustmentProfile) -> Table:
    """Peak bytes and seconds of a client in an ordinary and in an adjustment round, and of the server's update."""
    table = Table(title=f"Round {found.round} adjusts the masks: one client, one minibatch")
    for head in ("", "the most alive, model included", "seconds"):
        table.add_column(head, justify="left" if not head else "right")
    rows = (("client, ordinary round", "ordinary client"), ("client, adjustment round", "client"))
    for head, part in (*rows, ("server's update", "server")):
        table.add_row(head, bytes_text(found.peaks[part]), seconds_text(found.times[part]))
    return table


def bytes_table(steps: list[StepProfile]) -> Table:
    """A row for each layer of each model that holds or keeps anything: kB by kind, as `held` and `kept` name them."""
    kinds = [kind for kind in HEADS if any(_size(cost, kind) for s in steps for cost in s.layers.values())]
    table = _table("Layers: kB held (weights to gradients), and kept for the backward pass by kind and in all", "layer")
    for head in ("model", *(HEADS[kind] for kind in kinds), "kept"):
        table.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for name in _names(steps):
        costs = [(step.name.split()[0], step.layers[name]) for step in steps if name in step.layers]
        rows = [(model, cost) for model, cost in costs if any((*cost.held.values(), *cost.kept.values()))]
        for at, (model, cost) in enumerate(rows):
            sizes = (*(_size(cost, kind) for kind in kinds), sum(cost.kept.values()))
            table.add_row("" if at else name, model, *map(_kilobytes, sizes))
    return table


def time_table(steps: list[StepProfile]) -> Table:
    """A row for each layer that takes time: its weights, and ms of both passes in each model, one beside the other."""
    own = steps[-1]
    table = _table("Layers: ms of the forward and the backward pass", "layer")
    table.add_column("weights", justify="right", no_wrap=True)
    for which in ("forward", "backward"):
        for step in steps:
            table.add_column(f"{which} {step.name.split()[0]}", justify="right")
    for name in _names(steps):
        active, all = own.active.get(name, (0, 0))
        weights = DASH if not all else count_text(all) if active == all else f"{count_text(all)} > {count_text(active)}"
        costs = [step.layers.get(name) for step in steps]
        times = [_time(cost, which) for which in ("forward", "backward") for cost in costs]
        table.add_row(name, weights, *times)
    return table


def _table(title: str, head: str) -> Table:
    """Narrow, so that all kinds fit; names of layers are folded."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column(head, overflow="fold", min_width=12)
    return table


def _names(steps: list[StepProfile]) -> list[str]:
    """Of the layers of all models: in the order of the method's, then those that only others have."""
    return list(dict.fromkeys(name for step in reversed(steps) for name in step.layers))


def _ratio(own: float, rival: float) -> str:
    return f"{own / rival:.2f}" if rival else DASH


def _size(cost: LayerCost, kind: str) -> int:
    return cost.held.get(kind, 0) + cost.kept.get(kind, 0)


def _kilobytes(size: int) -> str:
    if abs(size) >= 99_950:
        return f"{size / 1000:.0f}"
    return f"{size / 1000:.1f}" if abs(size) >= 1000 else f"{size / 1000:.2g}" if size else DASH


def _time(cost: LayerCost | None, which: str) -> str:
    return DASH if cost is None else f"{1000 * getattr(cost, which):.2f}"
