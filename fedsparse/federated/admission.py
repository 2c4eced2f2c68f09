"""A report's way into a sum, the same on rank 0 and on a rank that sums itself: decoded, judged, digested."""

from __future__ import annotations

from collections.abc import Mapping

from fedsparse.federated import coordinates
from fedsparse.federated.method import Method, Sections
from fedsparse.federated.server import Server
from fedsparse.federated.validate import Facts, judge
from fedsparse.wire import Spec


def admit(
    server: Server,
    method: Method,
    report: bytes | memoryview,
    kind: str,
    t: int,
    client: int,
    expect: Mapping[str, Spec],
    norm_bound: float | None = None,
) -> tuple[Facts, Sections]:
    """What the client says of itself, and what adds; UpdateError says why the report is refused."""
    facts, sent = judge(report, kind, t, client, server.samples[client], expect)
    sections = method.digest(server, sent, t)
    if norm_bound is not None and kind == "report":
        coordinates.check_norm(server, sections, norm_bound)
    return facts, sections
