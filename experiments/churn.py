"""How masks and layer densities move over the rounds of recorded runs: a table in Markdown on standard output.

    python experiments/churn.py RUN_DIR...

Of each run: the rounds that changed the mask, and which share of the active weights each made active; and of the layers
whose density changed, it at the first and the last round.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedsparse.report import RunRecord, read_runs


def changes(run: RunRecord) -> str:
    """Return "round: share" of every round with a new mask."""
    moved = [(record["round"], record["mask_change"]) for record in run.rounds if record["mask_change"]]
    return ", ".join(f"{t}: {100 * share:.2g} %" for t, share in moved) or "none"


def moved_layers(run: RunRecord) -> str:
    """Return the first and last density of the layers whose density is not what it was."""
    first, last = (run.rounds[at]["layer_densities"] for at in (0, -1))
    moved = [
        f"{name} {100 * first[name]:.3g} to {100 * last[name]:.3g} %" for name in last if first[name] != last[name]
    ]
    return ", ".join(moved) or "all as at the start"


def layers(run: RunRecord) -> str:
    """Return the density of every layer at the last round."""
    return ", ".join(f"{100 * density:.3g}" for density in run.rounds[-1]["layer_densities"].values()) or "dense"


def main(folders: list[str]) -> None:
    """Print the table of the runs in the folders."""
    print("| run | newly active of active weights, by round | layer densities at the end, % | layers that moved |")
    print("| --- | --- | --- | --- |")
    for run in read_runs([Path(folder) for folder in folders]):
        print(f"| {run.label} | {changes(run)} | {layers(run)} | {moved_layers(run)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
