"""`train.fit_density`: a density at which all clients keep their memory limits, found before a run begins."""

from __future__ import annotations

from typing import Any

import typer

from fedsparse.cli.errors import BAD_INPUT, CommandError
from fedsparse.config import Config


def fit(config: Config, experiment: Any, quiet: bool) -> tuple[Config, Any]:
    """Return both with the density that fits, and say which it is; as they are without `train.fit_density`."""
    import torch

    from fedsparse.comm.mpi import world_size
    from fedsparse.federated.fit import density_of, fitted

    if not config.train.fit_density:
        return config, experiment
    if world_size() > 1:
        raise CommandError(
            "train.fit_density needs one process to try densities; `fedsparse run CONFIG --ranks N` does so first",
            BAD_INPUT,
        )
    torch.set_num_threads(config.threads)
    try:
        found = fitted(experiment)
    except ValueError as error:
        raise CommandError(f"method {config.method.name} cannot start: {error}", BAD_INPUT) from error
    name = density_of(found.method)
    if not quiet:
        asked, fits = getattr(experiment.method, name), getattr(found.method, name)
        typer.echo(f"method.{name} {fits:g} fits the memory limits (asked for: {asked:g})", err=True)
    return config.model_copy(update={"method": found.method}), found


def again(config: Config) -> list[str]:
    """Return what `--set` must say for other processes to begin with the density that was found."""
    from fedsparse.federated.fit import density_of

    if not config.train.fit_density:
        return []
    name = density_of(config.method)
    return [f"method.{name}={getattr(config.method, name)!r}", "train.fit_density=false"]
