"""What a round takes in which the method adjusts its masks: client and server, on one minibatch of client 0."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

from fedsparse.federated import Experiment, Loop
from fedsparse.federated.client import Client
from fedsparse.federated.meter import Counter, model_bytes
from fedsparse.federated.method import Method, Sections
from fedsparse.federated.server import Server
from fedsparse.federated.total import Total
from fedsparse.nn.walk import parameters_of
from fedsparse.report.step_recorder import Moment
from fedsparse.wire import Section


@dataclass(frozen=True)
class AdjustmentProfile:
    """One adjustment round. Sizes in bytes, times in seconds.

    name, round: which. held: the model alone. peaks: the most alive, the model included, and times: unwatched, of
    "client" (trains on one minibatch, prunes and grows, reports), "server" (its update), and "ordinary client" (in a
    round that adjusts nothing). peak, seconds: of client and server together. moments, marks: bytes alive over the
    round, noted after every operation of torch, and when the client's report and the server's part began.
    """

    name: str
    round: int
    held: int
    peaks: dict[str, int]
    times: dict[str, float]
    moments: list[Moment]
    marks: dict[str, float]

    @property
    def peak(self) -> int:
        """The most alive."""
        return max(self.peaks["client"], self.peaks["server"])

    @property
    def seconds(self) -> float:
        """Client and server, one after the other."""
        return self.times["client"] + self.times["server"]


_NOTED = ("inner", "counter", "times", "begin", "report", "digest", "update", "seconds", "_note")


class _Parts(Method):
    """Is the method of a loop, passes everything on, and notes when the parts of a round begin and end."""

    inner: Method
    counter: Counter
    times: dict[str, float]

    def __init__(self, method: Method, counter: Counter) -> None:
        for name, value in (("inner", method), ("counter", counter), ("times", {})):
            object.__setattr__(self, name, value)  # a method is frozen

    def __getattribute__(self, name: str) -> Any:
        """What is not noted here is the method's."""
        if name in _NOTED:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "inner"), name)

    def _note(self, what: str) -> None:
        self.times[what] = self.counter.now()

    def begin(self, client: Client) -> None:
        """The client begins."""
        self._note("client")
        self.inner.begin(client)

    def report(self, client: Client) -> dict[str, Section]:
        """The client ends with its report."""
        self._note("report")
        sections = self.inner.report(client)
        self._note("client end")
        return sections

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """The server reads the report."""
        self._note("server")
        return self.inner.digest(server, sections, t)

    def update(self, server: Server, total: Total, t: int) -> None:
        """The server's update."""
        self.inner.update(server, total, t)
        self._note("server end")

    def seconds(self, part: str) -> float:
        """Of "client" or "server"."""
        return self.times[f"{part} end"] - self.times[part]


class _EveryOperation(TorchDispatchMode):
    """Notes what is alive after each operation of torch."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        counter.reset()
        self.counter, self.moments = counter, [Moment(counter.now(), counter.live(), counter.live())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        result = func(*args, **(kwargs or {}))
        self.moments.append(Moment(self.counter.now(), self.counter.live(), self.counter.peak()))
        self.counter.reset()
        return result


def adjustment(experiment: Experiment, opened: Loop) -> AdjustmentProfile | None:
    """The first adjustment round of a run on one minibatch of client 0; None where the method has none.

    opened: the experiment's loop, which has its first masks; it stays as it is.
    """
    rounds = experiment.method.adjustments(experiment.training.rounds)
    if not rounds:
        return None
    counter = Counter(parameters_of(experiment.model)[0].device)
    loop, parts = _small_loop(experiment, counter)
    server = opened.server
    loop.server.model, loop.server.state = copy.deepcopy(server.model), copy.deepcopy(server.state)
    loop.server.mask_version = server.mask_version
    loop.round(0)  # what is made once is there
    ordinary, ordinary_seconds = loop.round(0), parts.seconds("client")
    record = loop.round(rounds[0])
    times = {"client": parts.seconds("client"), "server": parts.seconds("server"), "ordinary client": ordinary_seconds}
    peaks = {
        "client": record["peak_bytes"],
        "server": record["update_peak_bytes"],
        "ordinary client": ordinary["peak_bytes"],
    }
    watcher = _EveryOperation(counter)
    with watcher:
        loop.round(rounds[0])
    start, end = parts.times["client"], parts.times["server end"]
    inside = [moment for moment in watcher.moments if start <= moment.seconds <= end]
    held = model_bytes(loop.server.model)
    shift = held - inside[0].live
    return AdjustmentProfile(
        f"{experiment.method.name} adjusting",
        rounds[0],
        held,
        peaks,
        times,
        [Moment(m.seconds - start, m.live + shift, m.peak + shift) for m in inside],
        {what: parts.times[name] - start for what, name in (("growth, report", "report"), ("server", "server"))},
    )


def _small_loop(experiment: Experiment, counter: Counter) -> tuple[Loop, _Parts]:
    """A loop of one client with one minibatch, and the method of it that notes times."""
    parts = _Parts(experiment.method, counter)
    part = np.asarray(experiment.parts[0])[: experiment.training.batch_size]
    never = experiment.training.rounds + 1
    training = replace(experiment.training, clients_per_round=1, epochs=1, eval_every=never)
    trial = replace(experiment, method=parts, parts=[part], training=training, memory_limits=None, public=None)
    return Loop(trial), parts
