"""What happens before round 0 at one client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedsparse.federated.errors import RunError
from fedsparse.federated.method import Ask, Sections
from fedsparse.wire import Spec

if TYPE_CHECKING:
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


def ask_one(ask: Ask, server: Server, task: str, sections: Sections, expect: Mapping[str, Spec]) -> Total:
    """The answer of the client with the most samples, or of the next where its own is refused; RunError if all are."""
    failure = RunError("there is no client")
    for id in sorted(range(len(server.samples)), key=lambda id: -server.samples[id]):
        try:
            return ask(task, sections, expect, [id])
        except RunError as error:
            failure = error
    raise failure
