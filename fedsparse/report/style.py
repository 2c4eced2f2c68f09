"""How the report's figures look: colours that colour-blind readers can tell apart, and room for every label."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for lines on white; then darker colours of Tol's.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
    "#882255", "#999933", "#5D3A9B", "#8C8C8C", "#7A4A1E",
)  # fmt: skip
Dash = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (4.0, 1.5)), (0, (5.0, 1.2, 1.2, 1.2)), (0, (1.4, 1.2)), (0, (8.0, 2.0)))
MARKERS = ("o", "s", "^", "D", "v", "p", "X", "<", "*", ">", "h", "P", "d")
# Widths (points) and the places of markers go round after so many runs: up to there none hides another.
WIDEST, NARROWEST, PLACES = 3.4, 1.0, 12
MARKED = 5

SETTINGS: Any = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the report's settings to the figures made within."""
    with matplotlib.rc_context(SETTINGS):
        yield


def panels(columns: int = 1, height: float = 4.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of rows of panels that share their y axis, row after row; height of a row, in inches."""
    figure = Figure(figsize=(7.4 if columns == 1 else 4.6 * columns, rows * height))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)


def line_style(at: int, points: int) -> dict[str, Any]:
    """Return how the run at this place is drawn; no two of 780 runs have the same colour, dash and marker.

    Each line is narrower than the one drawn before it, and MARKED of its points have markers at most, where that can
    be not those of the runs beside it: lines that coincide stay visible.
    """
    every = max(math.ceil(points / MARKED), min(PLACES, math.ceil(points / 2)), 1)
    return {
        "color": COLOURS[at % len(COLOURS)],
        "linestyle": DASHES[at % len(DASHES)],
        "linewidth": WIDEST - (WIDEST - NARROWEST) * (at % PLACES) / (PLACES - 1),
        "marker": MARKERS[at % len(MARKERS)],
        "markersize": 8.0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "markevery": (at % every, every),
    }


def beside(at: int, count: int) -> float:
    """Return how far to the side the run at this place is drawn, so that those of equal values do not hide it."""
    return 0.8 * (at - (count - 1) / 2) / max(count, 5)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of a panel's lines under the figure, where it covers none of them."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(len(label) for label in labels)
    most = max(1, min(len(labels), int(figure.get_figwidth() * 11 / (longest + 9))))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2)


def whole_numbers(axes: Axes) -> None:
    """Put the ticks of the x axis, which counts rounds, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def percent_axis(axis: Axis) -> None:
    """Label an axis of shares of one in percent, without needless decimals."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    axis.set_minor_formatter(NullFormatter())


def logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each decade, so that few decades still have enough labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": "fedsparse"})
    return buffer.getvalue()
