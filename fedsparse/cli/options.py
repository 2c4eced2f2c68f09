"""The arguments and options that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a result is printed on standard output."""

    table = "table"
    json = "json"


class Listed(StrEnum):
    """What can be listed."""

    methods = "methods"
    models = "models"
    datasets = "datasets"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration.")]
ConfigFiles = Annotated[
    list[Path], typer.Argument(metavar="CONFIG.toml...", help="Configurations, each of one method or of several.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Set a value of the configuration.")
]
Out = Annotated[Path | None, typer.Option("--out", help="A new or empty folder for the results [default: in runs/].")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replace the configuration's seed.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The folder of the data set's files.")]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Run that many consecutive seeds; the table has their means.")
]
Target = Annotated[
    float | None,
    typer.Option("--target", min=0.0, max=1.0, help="An accuracy; the table has what it took to reach it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of the run.")]
HostFile = Annotated[
    Path | None, typer.Option("--hostfile", exists=True, dir_okay=False, help="With --ranks: mpirun's list of hosts.")
]
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Run on that many MPI ranks.")]
AsFormat = Annotated[Format, typer.Option("--format", help="How to print the result.")]
