"""Faults on purpose: FEDSPARSE_FAULT=rank:round:point:kind makes one process fail at one point of one round, once.

Several are separated by commas. Points, in the order in which a round passes them; the first four on whoever works,
the others on rank 0:

| point | when |
| --- | --- |
| train | before a client trains |
| report | when its report is encoded; the kinds that spoil it spoil it here |
| answer | when a rank sends the report |
| sum | when a rank that sums itself sends its sum |
| open | during what precedes round 0, before the method's probe |
| send | before the weights are sent |
| update | after the last report, before the method's update |
| record | before the round is written into rounds.jsonl |
| line | in the middle of that line |
| tensors | before the checkpoint's tensors are written |
| manifest | between these and its manifest |
| prune | before older checkpoints are deleted |

Kinds: kill (SIGKILL), stop (SIGSTOP), raise, exit0 (`sys.exit(0)`), leave0 (`os._exit(0)`), slow or slow=SECONDS
(sleep, else 5), full (the disk is full); of reports also garbage (random bytes), nan, wrong-shape, stale (the round
before); of answers duplicate (sent twice) and garbage. Without the variable nothing of this happens.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from functools import cache

import numpy as np

from fedsparse.comm.mpi import world_rank
from fedsparse.wire import Section, Values, decode, encode

VARIABLE = "FEDSPARSE_FAULT"
POINTS = (
    "train",
    "report",
    "answer",
    "sum",
    "open",
    "send",
    "update",
    "record",
    "line",
    "tensors",
    "manifest",
    "prune",
)
ACTS = ("kill", "stop", "raise", "exit0", "leave0", "slow", "full")
SPOILS = ("garbage", "nan", "wrong-shape", "stale", "duplicate")
_FORM = re.compile(rf"(\d+):(-?\d+):({'|'.join(POINTS)}):({'|'.join((*ACTS, *SPOILS))})(?:(?<=:slow)=(\d+\.?\d*))?")


@dataclass
class Fault:
    """What is to fail: the point in `round` on `rank`, how (`kind`), and `seconds` where it sleeps. left: how often."""

    rank: int
    round: int
    point: str
    kind: str
    seconds: float = 5.0
    left: int = 1

    def due(self, point: str, round: int) -> bool:
        """Whether this process is to fail here; true once."""
        here = (self.rank, self.round, self.point) == (world_rank(), round, point)
        self.left -= here
        return here and self.left >= 0


@cache
def planned() -> tuple[Fault, ...]:
    """The faults that the environment orders; ValueError where one is no fault."""
    return tuple(_parse(text) for text in os.environ.get(VARIABLE, "").split(",") if text)


def _parse(text: str) -> Fault:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{VARIABLE} has {text!r} but must be rank:round:point:kind, two whole numbers, a point of "
            f"{', '.join(POINTS)} and a kind of {', '.join((*ACTS, *SPOILS))}"
        )
    rank, round, point, kind, seconds = found.groups()
    return Fault(int(rank), int(round), point, kind, float(seconds or 5.0))


def _due(point: str, round: int, kinds: tuple[str, ...]) -> Fault | None:
    if not planned():
        return None
    return next((fault for fault in planned() if fault.kind in kinds and fault.due(point, round)), None)


def reach(point: str, round: int) -> None:
    """Fail here if that is planned."""
    fault = _due(point, round, ACTS)
    if fault is None:
        return
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.kind == "exit0":
        sys.exit(0)
    elif fault.kind == "leave0":
        os._exit(0)
    elif fault.kind == "slow":
        time.sleep(fault.seconds)
    elif fault.kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        raise RuntimeError(f"a fault was ordered at {point} of round {round}")


def spoil(data: bytes, round: int) -> bytes:
    """An encoded report of the round, spoilt if that is planned."""
    fault = _due("report", round, SPOILS)
    if fault is None:
        return data
    if fault.kind == "garbage":
        return np.random.default_rng(0).bytes(len(data))
    message = decode(data)
    sections: dict[str, Section] = dict(message.sections)
    parameters = sections["parameters"]
    if not isinstance(parameters, Values):
        raise TypeError("parameters are values")
    if fault.kind == "nan":
        sections["parameters"] = Values(np.full_like(parameters.array, np.nan))
    elif fault.kind == "wrong-shape":
        sections["parameters"] = Values(parameters.array[:1])
    return encode(message.kind, message.round - (fault.kind == "stale"), message.sender, sections)


def answers(frame: bytes, round: int) -> list[bytes]:
    """What a rank sends in place of one frame: that frame, or what is planned."""
    fault = _due("answer", round, SPOILS)
    if fault is None:
        return [frame]
    return [frame, frame] if fault.kind == "duplicate" else [b"?"]
