"""Text as token numbers: one token a character, or byte pairs learned from the text."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

BYTES = 256
UNKNOWN = "\ufffd"
# Letters, digits or other signs, each with the space before it, or white space: pairs never cross such a word.
WORDS = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+")
Pair = tuple[int, int]


class Vocabulary(Protocol):
    """A map between text and token numbers 0..len - 1."""

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Token numbers of a text, int32 [tokens]."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens."""
        ...


@dataclass(frozen=True)
class Characters:
    """One token a character; number 0 stands for every character that is not in `known`.

    known: the characters, sorted; number i + 1 is known[i].
    """

    known: str

    @classmethod
    def train(cls, text: str) -> Characters:
        """The characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.known) + 1

    def encode(self, text: str) -> np.ndarray:
        """Token numbers, int32 [characters]."""
        points = np.array([ord(c) for c in self.known], dtype=np.uint32)
        given = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        place = np.searchsorted(points, given)
        found = points[np.minimum(place, len(points) - 1)] == given if len(points) else np.zeros(len(given), bool)
        return np.where(found, place + 1, 0).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; number 0 as the replacement character."""
        return "".join(self.known[int(t) - 1] if t else UNKNOWN for t in tokens)


@dataclass(frozen=True)
class BytePairs:
    """Byte-pair encoding (Sennrich et al., ACL 2016) of UTF-8: every text has tokens, none is unknown.

    Numbers 0..255 are bytes; number 256 + i is the pair merges[i] of earlier numbers.
    """

    merges: tuple[Pair, ...]

    @classmethod
    def train(cls, text: str, size: int) -> BytePairs:
        """Merge the pair most frequent in the text, ties to the lower numbers, until there are `size` tokens.

        Fewer where no pair occurs twice. Depends on nothing but the arguments.
        """
        return cls(tuple(_merges(Counter(WORDS.findall(text)), size - BYTES)))

    def __len__(self) -> int:
        return BYTES + len(self.merges)

    @cached_property
    def _numbers(self) -> dict[Pair, int]:
        return {pair: BYTES + i for i, pair in enumerate(self.merges)}

    @cached_property
    def _spelling(self) -> list[bytes]:
        spelling = [bytes([b]) for b in range(BYTES)]
        for first, second in self.merges:
            spelling.append(spelling[first] + spelling[second])
        return spelling

    def encode(self, text: str) -> np.ndarray:
        """Token numbers, int32 [tokens]; each different word is looked at once."""
        known: dict[str, list[int]] = {}
        tokens: list[int] = []
        for word in WORDS.findall(text):
            if word not in known:
                known[word] = self._encode_word(list(word.encode()))
            tokens += known[word]
        return np.array(tokens, dtype=np.int32)

    def _encode_word(self, tokens: list[int]) -> list[int]:
        while len(tokens) > 1:
            # Earlier merges have lower numbers: in training, too, they came first.
            number, pair = min((self._numbers.get(pair, len(self)), pair) for pair in pairwise(tokens))
            if number == len(self):
                break
            tokens = _merged(tokens, pair, number)
        return tokens

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text; bytes that are no UTF-8 as replacement characters."""
        return b"".join(self._spelling[int(t)] for t in tokens).decode(errors="replace")


def _merged(tokens: list[int], pair: Pair, number: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            out.append(number)
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out


def _merges(words: Counter[str], most: int) -> Iterable[Pair]:
    """The most frequent pairs, one after the other; only words that hold a merged pair are counted anew."""
    spelled = [list(word.encode()) for word in words]
    weights = list(words.values())
    counts: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for word, tokens in enumerate(spelled):
        for pair in pairwise(tokens):
            counts[pair] += weights[word]
            holders[pair].add(word)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    number = BYTES
    while number < BYTES + most and queue:
        count, pair = heapq.heappop(queue)
        if -count != counts[pair]:
            # A stale entry: the pair's present count was pushed when it changed.
            continue
        if counts[pair] < 2:
            return
        yield pair
        changed: set[Pair] = set()
        for word in holders.pop(pair):
            before, after = spelled[word], _merged(spelled[word], pair, number)
            for sign, tokens in ((-1, before), (1, after)):
                for other in pairwise(tokens):
                    counts[other] += sign * weights[word]
                    changed.add(other)
                    if sign > 0:
                        holders[other].add(word)
            spelled[word] = after
        for other in changed - {pair}:
            heapq.heappush(queue, (-counts[other], other))
        number += 1
