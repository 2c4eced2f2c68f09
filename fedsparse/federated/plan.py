"""How a client trains within its memory limit (`budget`): as a section of the round's weights tells it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from fedsparse.wire import Section, Values

if TYPE_CHECKING:
    from fedsparse.federated.client import Training
    from fedsparse.federated.method import Method

LEVELS = ("dense", "lossless", "recompute")
"""Levels of the activation store that compute the same, the fastest first."""
OWN = "own"
"""Stands for levels that compute something else, or differ by layer: those of the run, which no plan changes."""
CODES = (*LEVELS, OWN)
LEAST_PIECE = 4
"""Samples of a piece of a minibatch at least, where there is batch norm."""
_BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Plan(NamedTuple):
    """A level of the activation store, and the pieces in which a full minibatch goes through the model."""

    level: str
    pieces: int = 1

    def applied(self, training: Training) -> Training:
        """The training at this level and in these pieces."""
        levels = training.activations if self.level == OWN else self.level
        return replace(training, activations=levels, pieces=self.pieces)


def levels_from(training: Training, method: Method) -> tuple[str, ...]:
    """The levels that plans may have, the fastest first: from that of the run on, where it is one of `LEVELS`."""
    given = training.levels(method)
    by_pattern = {"*": given} if isinstance(given, str) else given
    if set(by_pattern) == {"*"} and by_pattern["*"] in LEVELS:
        return LEVELS[LEVELS.index(by_pattern["*"]) :]
    return (OWN,)


def least_piece(model: nn.Module) -> int:
    """Samples that the pieces of a full minibatch must have at least."""
    return LEAST_PIECE if any(isinstance(module, _BATCH_NORMS) for module in model.modules()) else 1


def check_pieces(training: Training, method: Method, model: nn.Module) -> None:
    """Refuse (ValueError) pieces of a minibatch that are too small for batch norms of the method's model."""
    if training.pieces == 1:
        return
    size, least = -(-training.batch_size // training.pieces), least_piece(method.prepare(copy.deepcopy(model)))
    if size < least:
        raise ValueError(
            f"pieces is {training.pieces}, but batch norm needs pieces of at least {least} samples, and these would "
            f"have {size} of batch_size {training.batch_size} (a model with group norm takes any)"
        )


def section_of(plans: Mapping[int, Plan]) -> Values:
    """Plans by client as int64 [clients, 3]: client, place in `CODES`, pieces."""
    rows = [(client, CODES.index(plan.level), plan.pieces) for client, plan in sorted(plans.items())]
    return Values(np.array(rows, dtype=np.int64).reshape(-1, 3))


def plan_for(client: int, sections: Mapping[str, Section]) -> Plan | None:
    """The client's plan in the section `plans` of a weights message; None where it has none."""
    section = sections.get("plans")
    if isinstance(section, Values):
        for id, level, pieces in section.array.tolist():
            if id == client:
                return Plan(CODES[level], pieces)
    return None
