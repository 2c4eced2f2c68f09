"""How a client trains within its memory limit (`budget`): as a section of the round's weights tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedsparse.wire import Section, Values

if TYPE_CHECKING:
    from fedsparse.federated.client import Training

LEVELS = ("dense", "lossless", "recompute")
"""Levels of the activation store that compute the same, the fastest first."""


class Plan(NamedTuple):
    """A level of the activation store, and the pieces in which a full minibatch goes through the model."""

    level: str
    splits: int = 1

    def applied(self, training: Training) -> Training:
        """The training at this level."""
        return replace(training, lossless=self.level != "dense", recompute=self.level == "recompute")


def level_of(training: Training) -> str:
    """The level that a training names."""
    return "recompute" if training.recompute else "lossless" if training.lossless else "dense"


def section_of(plans: Mapping[int, Plan]) -> Values:
    """Plans by client as int64 [clients, 3]: client, place in `LEVELS`, pieces."""
    rows = [(client, LEVELS.index(plan.level), plan.splits) for client, plan in sorted(plans.items())]
    return Values(np.array(rows, dtype=np.int64).reshape(-1, 3))


def plan_for(client: int, sections: Mapping[str, Section]) -> Plan | None:
    """The client's plan in the section `plans` of a weights message; None where it has none."""
    section = sections.get("plans")
    if isinstance(section, Values):
        for id, level, splits in section.array.tolist():
            if id == client:
                return Plan(LEVELS[level], splits)
    return None
