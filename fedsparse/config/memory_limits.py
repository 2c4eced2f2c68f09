"""`train.memory_limit`: a size for all clients, one for each, or sizes with the share of the clients that have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from fedsparse.config.sentences import ConfigError, shown

UNITS = {"": 1, "B": 1} | {f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}
UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}
MOST = 2**63
"""Bytes from which on no size is taken."""
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})")
Size = int | str
Limit = Size | list[Size] | dict[str, float]


def limits_of(given: Limit | None, clients: int) -> list[int] | None:
    """Bytes by client, None where there is no limit; ConfigError names what cannot be read."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return _by_share(given, clients)
    if not isinstance(given, list):
        return [bytes_of(given)] * clients
    if len(given) != clients:
        raise ConfigError(
            f"train.memory_limit has {len(given)} entries but must have one for each of {clients} clients"
        )
    return [bytes_of(size) for size in given]


def bytes_of(size: Size) -> int:
    """Bytes of a number, or of a text such as "200 MiB"; ConfigError where it is no size above 0."""
    match = _SIZE.fullmatch(str(size))
    found = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 1 <= found < MOST:
        raise ConfigError(
            f"train.memory_limit is {shown(size)} but must be bytes above 0 and below 2^63, as a whole number or with "
            f"one of the units {', '.join(filter(None, UNITS))}, as in '200 MiB'"
        )
    return int(found)


def _by_share(given: Mapping[str, float], clients: int) -> list[int]:
    """The first clients have the first size, and so on; each share is rounded where it ends."""
    if not given or min(given.values()) < 0 or abs(sum(given.values()) - 1) > 1e-6:
        raise ConfigError(f"the shares of train.memory_limit add up to {sum(given.values()):g} but must add up to 1")
    ends = [round(clients * end) for end in itertools.accumulate(given.values())]
    sizes = [bytes_of(size) for size in given]
    return [next(size for size, end in zip(sizes, ends) if client < end) for client in range(clients)]
