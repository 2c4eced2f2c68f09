"""A set of places among many, a bit a place: an eighth of a bool array's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsparse import _wire
from fedsparse.wire.error import WireError

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 1 << 15
"""Places that are looked at at once, so that nothing as large as the whole is made; a multiple of 8."""


@dataclass(frozen=True, eq=False)
class Bits:
    """A bool array [size] as data uint8 [ceil(size / 8)]: element 8 i + j is bit j of byte i, and padding is 0."""

    data: Array
    size: int

    def __post_init__(self) -> None:
        """Refuse (WireError) data of another length, and padding that is set."""
        if self.data.dtype != np.uint8 or self.data.shape != ((self.size + 7) // 8,):
            raise WireError(f"bits of {self.size} places cannot be {self.data.dtype.name} {list(self.data.shape)}")
        if self.size % 8 and self.data[-1] >> self.size % 8:
            raise WireError(f"the bitmap has padding bits set after its {self.size} bits")

    @classmethod
    def of_mask(cls, mask: Array) -> Bits:
        """Those of a bool array [size]."""
        return cls(_wire.pack_bits(mask.view(np.uint8)), len(mask))

    @classmethod
    def zeros(cls, size: int) -> Bits:
        """No place, yet."""
        return cls(np.zeros((size + 7) // 8, dtype=np.uint8), size)

    @classmethod
    def all(cls, size: int) -> Bits:
        """Every place."""
        return cls.of_mask(np.ones(size, dtype=np.bool_))

    def __len__(self) -> int:
        return self.size

    @property
    def count(self) -> int:
        """How many places are in the set."""
        return int(_wire.count_bits(self.data))

    def mask(self) -> Array:
        """The bool array [size]."""
        return _wire.unpack_bits(self.data, self.size)

    def indices(self) -> Array:
        """The places in the set: sorted int64 [count]."""
        return _wire.indices_from_bits(self.data, self.size, self.count)

    def between(self, start: int, end: int) -> Array:
        """The places in [start, end) that are in the set, counted from `start`: sorted int64."""
        first = start // 8
        data = self.data[first : (end + 7) // 8]
        mask = _wire.unpack_bits(data, 8 * len(data))
        return np.flatnonzero(mask[start - 8 * first : end - 8 * first])

    def holds(self, places: Array) -> Array:
        """Whether each of the places is in the set: bool of their shape."""
        return (self.data[places >> 3] >> (places & 7).astype(np.uint8) & 1).astype(np.bool_)

    def put(self, places: Array, held: bool = True) -> None:
        """Take distinct places into the set, or out of it."""
        bits = np.left_shift(1, places & 7).astype(np.uint8)
        if held:
            np.bitwise_or.at(self.data, places >> 3, bits)
        else:
            np.bitwise_and.at(self.data, places >> 3, ~bits)

    def copy(self) -> Bits:
        """A set of its own memory."""
        return Bits(self.data.copy(), self.size)

    def without(self, other: Bits) -> Bits:
        """The places of this set that the other, of the same size, does not have."""
        return Bits(self.data & ~other.data, self.size)

    def ranks(self, places: Array, held: bool = True) -> Array:
        """For each of the places (sorted int64) how many places below it are in the set, or not in it: int64."""
        found = np.empty_like(places)
        for start, mask, before in self._chunks(held):
            low, high = np.searchsorted(places, [start, start + len(mask)])
            if low < high:
                own = np.cumsum(mask, dtype=np.int64)
                local = places[low:high] - start
                found[low:high] = before + own[local] - mask[local]
        return found

    def at_ranks(self, ranks: Array, held: bool = True) -> Array:
        """The places that are `ranks[i]` th (sorted int64, from 0) among those in the set, or not in it: int64."""
        found = np.empty_like(ranks)
        for start, mask, before in self._chunks(held):
            inside = np.flatnonzero(mask)
            low, high = np.searchsorted(ranks, [before, before + len(inside)])
            found[low:high] = start + inside[ranks[low:high] - before]
        return found

    def _chunks(self, held: bool) -> Iterator[tuple[int, Array, int]]:
        """(start, whether each place of a chunk is in the set or not in it, how many are before the chunk)."""
        before = 0
        for start in range(0, self.size, CHUNK):
            end = min(start + CHUNK, self.size)
            mask = _wire.unpack_bits(self.data[start // 8 : (end + 7) // 8], end - start)
            yield start, mask if held else ~mask, before
            before += int(np.count_nonzero(mask if held else ~mask))
