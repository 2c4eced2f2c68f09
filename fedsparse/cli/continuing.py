"""A comparison that was stopped goes on: what its folder says that it is, and where each of its runs starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsparse.cli.errors import CommandError
from fedsparse.cli.folders import RunFolder, comparison_folder, inner_folder
from fedsparse.config import Config
from fedsparse.federated.identity import difference
from fedsparse.report.records import read_object, read_result

PLAN = "comparison.json"
FREE = ("failures", "ranks", "checkpoints", "track")
"""Tables that a comparison that goes on may change, as a resumed run may: they decide no number."""


def folder_of(out: Path | None, configs: list[Path], runs: dict[str, Config]) -> RunFolder:
    """Return the folder of a comparison: a new one, or `out` where it holds this very one, which then goes on.

    runs: the configuration of each, by the name of its folder. Raises CommandError where `out` holds something else.
    """
    from fedsparse.federated.artefacts import write_json

    plan = json.loads(json.dumps({name: settings_of(config) for name, config in runs.items()}))
    if out is not None and (out / PLAN).is_file():
        differs = difference(plan, read_object(out / PLAN))
        if differs:
            raise CommandError(f"--out {out} holds another comparison: {differs} there; name a new or empty folder")
        return RunFolder(out, (), old=True)
    folder = comparison_folder(out, configs)
    write_json(folder.path / PLAN, plan)
    return folder


def settings_of(config: Config) -> dict[str, Any]:
    """Return what must be the same for a run to go on; where the data lie may change."""
    tables = {name: table for name, table in config.as_dict().items() if name not in FREE}
    return tables | {"data": {key: value for key, value in tables["data"].items() if key != "dir"}}


def run_folder_in(outer: RunFolder, name: str) -> RunFolder:
    """Return the folder of one run of a comparison, `old` where the run was started before."""
    path = outer.path / name
    if not path.exists():
        return inner_folder(outer, name)
    old = (path / "config.json").is_file()
    return RunFolder(path, () if old else (path,), old)


def is_complete(folder: Path) -> bool:
    """Tell whether a run has its last round."""
    result = read_result(folder / "result.json")
    return result is not None and result["status"] == "complete"
