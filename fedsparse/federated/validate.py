"""Judge an update before it is summed: one bad client must not spoil the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsparse.federated.total import LIMIT
from fedsparse.wire import Masked, Pairs, Section, Spec, Values, ValuesSpec, WireError, decode, fixed_point

FACTS = ValuesSpec(size=2, dtype="float64")


class UpdateError(ValueError):
    """An update that is not summed; the sentence says why."""


@dataclass(frozen=True)
class Facts:
    """What a client says of itself: n_k, and its mean training loss (NaN where it did not train)."""

    samples: int
    loss: float


def judge(
    data: bytes | memoryview, kind: str, round: int, sender: int, declared: int, expect: Mapping[str, Spec]
) -> tuple[Facts, dict[str, Section]]:
    """Decode a report and check it; return what the client says of itself, and the other sections.

    Raises UpdateError if the bytes do not decode to what is expected, come from another round or client, weigh more
    than the declared samples, or hold a number that is not finite or not below 2^22 in magnitude.
    """
    try:
        message = decode(data, {"facts": FACTS, **expect})
    except WireError as error:
        raise UpdateError(str(error)) from error
    if (message.kind, message.round, message.sender) != (kind, round, sender):
        raise UpdateError(
            f"it is {message.kind} of client {message.sender} in round {message.round}, "
            f"not {kind} of client {sender} in round {round}"
        )
    facts = message.sections.pop("facts")
    samples, loss = facts.array.tolist() if isinstance(facts, Values) else (0.0, 0.0)
    if not 0 < samples <= declared or samples != int(samples):
        raise UpdateError(f"its weight is {samples:g} samples, but the client declared {declared}")
    for name, section in message.sections.items():
        _check_numbers(name, section)
    return Facts(int(samples), loss), message.sections


def _check_numbers(name: str, section: Section) -> None:
    if not isinstance(section, Values | Pairs | Masked):
        return
    values = section.values if section.values.dtype == np.float32 else section.tensor().float().numpy()
    magnitude = fixed_point.magnitude(values)
    if not math.isfinite(magnitude):
        raise UpdateError(f"{name} holds a number that is not finite")
    if magnitude >= LIMIT:
        raise UpdateError(f"{name} holds a number of magnitude {magnitude:g}, the limit is {LIMIT:g}")
