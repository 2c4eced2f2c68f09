"""Signs in at most two bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import forge

from fedsparse.wire import Ternary, TernarySpec, WireError, decode, encode, indexset, sizes
from fedsparse.wire.layout import Layout


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=200), st.integers(0, 40))
def test_signs_come_back_in_at_most_two_bits(signs: list[int], zeros: int) -> None:
    array = np.array(signs + 25 * zeros * [0], dtype=np.int8)
    data = encode("k", 0, 0, {"s": Ternary(array)})
    section = decode(data, {"s": TernarySpec(size=len(array))}).sections["s"]
    assert isinstance(section, Ternary)
    np.testing.assert_array_equal(section.signs, array)
    assert sizes(data)["s"] == Ternary(array).nbytes <= 2 * ((len(array) + 7) // 8)


def test_a_map_that_is_mostly_zero_takes_less() -> None:
    """At 5 % density the set takes about 5.8 bits an index and the sign one: 0.34 bits an element."""
    rng = np.random.default_rng(0)
    signs = (rng.random(1_000_000) < 0.05) * rng.choice([-1, 1], 1_000_000)
    assert Ternary(signs.astype(np.int8)).nbytes < 0.36 / 8 * 1_000_000


@pytest.mark.parametrize(
    ("signs", "sentence"),
    [
        (np.zeros(2), "signs must be a 1-D int8 array, got 1-D float64"),
        (np.array([2], dtype=np.int8), "signs must be -1, 0 or 1"),
        (np.array([-2], dtype=np.int8), "signs must be -1, 0 or 1"),
    ],
)
def test_what_is_no_map_of_signs_is_refused(signs: np.ndarray, sentence: str) -> None:
    with pytest.raises(WireError) as caught:
        Ternary(signs)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("payload", "size", "count", "sentence"),
    [
        (b"\x03\x00", 3, 1, "the bitmap has 2 bits set where 1 are announced"),
        (b"\x03\x04", 3, 2, "the bitmap has padding bits set after its 2 bits"),
        (b"\x03", 3, 2, "2 indices among 3 positions take 1 bytes here, not 0"),
        (b"\x03\x00\x00", 3, 2, "2 indices among 3 positions take 1 bytes here, not 2"),
    ],
)
def test_each_forgery_is_named(payload: bytes, size: int, count: int, sentence: str) -> None:
    layout = Layout(7, coding=indexset.BITMAP, size=size, count=count, nbytes=len(payload))
    with pytest.raises(WireError) as caught:
        decode(forge({"s": layout}, payload))
    assert str(caught.value) == f"section 's': {sentence}"


def test_a_map_without_an_expected_size_is_held_to_the_limit() -> None:
    data = encode("k", 0, 0, {"s": Ternary(np.zeros(5000, dtype=np.int8))})
    with pytest.raises(WireError, match="exceeds the limit"):
        decode(data, limit=100)
    assert decode(data, {"s": TernarySpec(5000)}, limit=100)
