"""The single-file HTML report: tables and embedded figures, no network."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from fedsparse.report.plots import PLOTS
from fedsparse.report.records import RunRecord
from fedsparse.report.style import png, styled
from fedsparse.report.summary import ranks_text, summary_rows
from fedsparse.report.table import Comparison


def figures_of(runs: list[RunRecord]) -> dict[str, bytes]:
    """Return the PNG of every figure for which the runs hold data, by name."""
    with styled():
        figures = {name: plot(runs) for name, plot in PLOTS.items()}
        return {name: png(figure) for name, figure in figures.items() if figure is not None}


def page_of(runs: list[RunRecord], comparison: Comparison, figures: dict[str, bytes], title: str) -> str:
    """Return the report's HTML, figures embedded as base64."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsparse.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle_of(runs),
        columns=comparison.columns(),
        rows=comparison.rows(),
        notes=comparison.notes(),
        summary=summary_rows(runs[0].result),
        figures=[
            {"data": base64.b64encode(data).decode("ascii"), "alt": name.replace("_", " ")}
            for name, data in figures.items()
        ],
        losses=loss_rows(runs),
        runs=[facts_of(run) for run in runs],
    )


def subtitle_of(runs: list[RunRecord]) -> str:
    """Return in one line what was trained, on what, and how many runs there are."""
    result = runs[0].result
    what = f"{result.get('model', 'unknown model')} on {result.get('dataset', 'unknown data')}"
    return f"{what}, {len(runs)} run{'s' if len(runs) > 1 else ''}, written by fedsparse"


def loss_rows(runs: list[RunRecord]) -> list[tuple[str, int | str, str, str]]:
    """Return (run, round, who, reason) of every report rejected, client dropped and rank that failed."""
    return [
        (run.label, when, who_of(entry), entry["reason"])
        for run in runs
        for when, record in parts_of(run)
        for kind in ("rejected", "dropped", "incidents")
        for entry in record.get(kind, [])
    ]


def parts_of(run: RunRecord) -> list[tuple[int | str, dict[str, Any]]]:
    """Return the run's opening, its rounds by number, and its closing."""
    opening, closing = ((when, run.result.get(when, {})) for when in ("opening", "closing"))
    return [opening, *((record["round"], record) for record in run.rounds), closing]


def who_of(entry: dict[str, Any]) -> str:
    """Return the rank, the client, or the rank with its client that an entry is about."""
    named = [f"{what} {entry[what]}" for what in ("rank", "client") if entry.get(what) is not None]
    return ", ".join(named)


def facts_of(run: RunRecord) -> dict[str, str]:
    """Return where, with what and with which configuration a run ran."""
    versions = run.result.get("versions") or {}
    return {
        "label": run.label,
        "seed": str(run.result.get("seed", "not recorded")),
        "ranks": f"MPI ranks: {ranks_text(run.result)}; " if run.result.get("ranks", 1) > 1 else "",
        "hardware": str(run.result.get("hardware", "hardware not recorded")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "versions not recorded",
        "config": config_text(run.folder / "config.json"),
    }


def config_text(path: Path) -> str:
    """Return a run's configuration as `table.key = value` lines, or nothing where it was not written."""
    if not path.is_file():
        return ""
    tables = json.loads(path.read_text(encoding="utf-8"))
    plain = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    nested = [
        f"{table}.{key} = {json.dumps(value)}"
        for table, keys in tables.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if value is not None
    ]
    return "\n".join(plain + nested)
