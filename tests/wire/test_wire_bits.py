"""A set of places as bits, against the bool array that it stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.wire import Bits, WireError
from fedsparse.wire.bits import CHUNK


def test_by_hand() -> None:
    """Places 1, 3 and 8 of ten: bits 2 + 8 of the first byte, 1 of the second."""
    bits = Bits.zeros(10)
    bits.put(np.array([1, 3, 8]))
    assert bits.data.tolist() == [10, 1]
    assert bits.count == 3
    assert bits.ranks(np.array([0, 3, 9])).tolist() == [0, 1, 3]
    assert bits.ranks(np.array([0, 3, 9]), held=False).tolist() == [0, 2, 6]
    assert bits.at_ranks(np.array([0, 2])).tolist() == [1, 8]
    assert bits.at_ranks(np.array([0, 1, 2]), held=False).tolist() == [0, 2, 4]
    bits.put(np.array([3, 8]), held=False)
    assert bits.indices().tolist() == [1]
    assert Bits.all(10).mask().tolist() == [True] * 10


@pytest.mark.parametrize("size", [0, 1, 8, 9, 100, CHUNK, 2 * CHUNK + 11])
def test_every_question_as_the_bool_array_answers_it(size: int) -> None:
    generator = np.random.default_rng(size)
    mask, other = generator.random(size) < 0.3, generator.random(size) < 0.5
    bits = Bits.of_mask(mask)
    assert np.array_equal(bits.mask(), mask)
    assert np.array_equal(bits.indices(), np.flatnonzero(mask))
    assert np.array_equal(bits.without(Bits.of_mask(other)).mask(), mask & ~other)
    places = np.flatnonzero(other)
    assert np.array_equal(bits.holds(places), mask[places])
    for held in (True, False):
        chosen = mask if held else ~mask
        before = np.concatenate([[0], np.cumsum(chosen)])
        assert np.array_equal(bits.ranks(places, held), before[places])
        ranks = np.arange(0, int(chosen.sum()), 3)
        assert np.array_equal(bits.at_ranks(ranks, held), np.flatnonzero(chosen)[ranks])
    low, high = size // 5, size - size // 3
    assert np.array_equal(bits.between(low, high), np.flatnonzero(mask[low:high]))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**16))
def test_any_part(first: int, length: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(80) < 0.5
    assert np.array_equal(
        Bits.of_mask(mask).between(first, first + length), np.flatnonzero(mask[first : first + length])
    )


def test_a_copy_has_its_own_memory() -> None:
    bits = Bits.zeros(8)
    bits.copy().put(np.array([2]))
    assert bits.count == 0


def test_wrong_data_are_refused() -> None:
    with pytest.raises(WireError, match=r"bits of 9 places cannot be uint8 \[1\]"):
        Bits(np.zeros(1, dtype=np.uint8), 9)
    with pytest.raises(WireError, match="padding bits set after its 3 bits"):
        Bits(np.array([8], dtype=np.uint8), 3)
