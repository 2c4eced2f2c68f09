"""The density at which clients keep their memory limits (`train.fit_density`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsparse.federated.errors import BudgetError
from fedsparse.federated.experiment import Experiment
from fedsparse.federated.loop import Loop

HALVINGS = 6
"""How often a density is halved before a limit is given up."""


def fitted(experiment: Experiment) -> Experiment:
    """The experiment at its method's density or, where a client's limit has no plan there, a half, a quarter ... of it.

    All clients train under masks of the server's size, so it is the smallest limit that decides. Each density is tried
    as a run begins, with its opening and the trials of `Budget`, on copies of the model. The experiment itself where
    nothing is to be changed. BudgetError where even 1/64 of the density is too much; ValueError without limits.
    """
    if experiment.memory_limits is None:
        raise ValueError("there are no memory limits for a density to fit")
    name = density_of(experiment.method)
    density = getattr(experiment.method, name)
    for halvings in range(HALVINGS + 1):
        lower: dict[str, Any] = {name: density / 2**halvings}
        tried = experiment if halvings == 0 else replace(experiment, method=replace(experiment.method, **lower))
        try:
            Loop(tried).open()
        except BudgetError as error:
            last = error
            continue
        return tried
    raise BudgetError(f"at a density of {density / 2**HALVINGS:.3g} still: {last}")


def density_of(method: Any) -> str:
    """The field of a method that says how many weights are active: `density`, of PruneFL `max_density`."""
    return "density" if hasattr(method, "density") else "max_density"
