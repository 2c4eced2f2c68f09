"""Communication within one process: nothing is sent, but every message is still bytes, and counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

Direction = Literal["down", "up"]


@dataclass
class Traffic:
    """Bytes and messages by direction ("down" to clients, "up" to the server), round and kind.

    In every question an argument left out means all of them.
    """

    _bytes: Counter[tuple[Direction, int, str]] = field(default_factory=Counter)
    _messages: Counter[tuple[Direction, int, str]] = field(default_factory=Counter)

    def count(self, direction: Direction, round: int, kind: str, data: bytes, copies: int = 1) -> None:
        """Count `data` as sent `copies` times."""
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
        if copies < 0:
            raise ValueError(f"copies must be at least 0, got {copies}")
        self._bytes[direction, round, kind] += copies * len(data)
        self._messages[direction, round, kind] += copies

    def bytes(self, direction: Direction | None = None, round: int | None = None, kind: str | None = None) -> int:
        """Bytes counted."""
        return sum(_matching(self._bytes, direction, round, kind))

    def messages(self, direction: Direction | None = None, round: int | None = None, kind: str | None = None) -> int:
        """Messages counted."""
        return sum(_matching(self._messages, direction, round, kind))


def _matching(
    counter: Counter[tuple[Direction, int, str]],
    direction: Direction | None,
    round: int | None,
    kind: str | None,
) -> Iterator[int]:
    wanted = (direction, round, kind)
    for key, number in counter.items():
        if all(want is None or want == part for want, part in zip(wanted, key)):
            yield number
