"""One run as rows of what was measured, for the terminal and for the HTML page alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsparse.report.table import macs_share
from fedsparse.report.units import DASH, bytes_text, count_text, percent_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table


def summary_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, measured value) for one run."""
    perplexity = [("perplexity", f"{result['perplexity']:.2f}")] if result.get("perplexity") is not None else []
    ranks = [("MPI ranks", ranks_text(result))] if result.get("ranks", 1) > 1 else []
    macs = f"{count_text(result.get('macs'))} a sample ({percent_text(macs_share(result))} of dense)"
    return [
        ("method", str(result.get("method", DASH))),
        ("model, data", f"{result.get('model', DASH)}, {result.get('dataset', DASH)}"),
        ("status", f"{result.get('status', 'unfinished')} after {result.get('rounds', 0)} rounds"),
        (
            "accuracy",
            f"{percent_text(result.get('accuracy'))} (best {percent_text(result.get('best_accuracy'))})",
        ),
        *perplexity,
        ("density", percent_text(result.get("density"))),
        ("multiply-adds", macs),
        *ranks,
        ("a round", f"{seconds_text(result.get('seconds_per_round'))} (median)"),
        ("whole run", seconds_text(result.get("total_seconds"))),
        ("peak memory", peaks_text(result)),
        *(("memory limits", plan_text(plan)) for plan in result.get("plans", [])),
        ("bytes down", bytes_text(result.get("bytes_down"))),
        ("bytes up", bytes_text(result.get("bytes_up"))),
    ]


def peaks_text(result: dict[str, Any]) -> str:
    """Return the most bytes that a client took, in adjustment rounds too, and that the server's updates took."""
    adjusting, update = result.get("adjustment_peak_bytes"), result.get("update_peak_bytes")
    parts = [bytes_text(result.get("peak_bytes"))]
    if adjusting is not None:
        ordinary = bytes_text(result.get("round_peak_bytes"))
        parts.append(f"ordinary rounds {ordinary}, adjustment rounds {bytes_text(adjusting)}")
    if update is not None:
        parts.append(f"the server's update {bytes_text(update)}")
    return "; ".join(parts)


def plan_text(plan: dict[str, Any]) -> str:
    """Return how the clients of one limit trained, and the most that they took."""
    count, pieces = len(plan["clients"]), plan["pieces"]
    who = f"{count} client{'s' if count > 1 else ''}"
    how = f"{plan['level']}, minibatches {'whole' if pieces == 1 else f'in {pieces} pieces'}"
    return f"{bytes_text(plan['limit'])} ({who}): {how}; at most {bytes_text(plan['peak'])}"


def ranks_text(result: dict[str, Any]) -> str:
    """Return how many ranks a run had, rank 0 included, and which of them it lost."""
    lost = ", ".join(map(str, result.get("lost_ranks", [])))
    return f"{result.get('ranks', 1)}{f', lost: {lost}' if lost else ''}"


def summary_table(result: dict[str, Any]) -> Table:
    """Return the rich table of one run."""
    from rich.table import Table

    table = Table(
        title=f"{result.get('name', DASH)}, seed {result.get('seed', DASH)}",
        show_header=False,
        title_justify="left",
    )
    for what, value in summary_rows(result):
        table.add_row(what, value)
    return table
