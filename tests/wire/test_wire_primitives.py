"""The compiled primitives against numpy, and their own bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse import _wire


@given(st.binary(max_size=200), st.integers(0, 200))
def test_checksums_agree_and_chain(data: bytes, cut: int) -> None:
    array = np.frombuffer(data, dtype=np.uint8)
    whole = _wire.crc32c(array)
    assert whole == _wire.crc32c_portable(array)
    assert whole == _wire.crc32c(array[cut:], _wire.crc32c(array[:cut]))
    assert whole == _wire.crc32c_portable(array[cut:], _wire.crc32c_portable(array[:cut]))


@given(st.integers(0, 40_000), st.integers(0, 40_000), st.integers(0, 2**32 - 1))
def test_checksums_of_many_bytes_agree(length: int, cut: int, seed: int) -> None:
    """Long enough for several rounds of the lanes, and for what is left after them."""
    array = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)
    assert _wire.crc32c(array, seed) == _wire.crc32c_portable(array, seed)
    sealed = np.frombuffer(_wire.seal(b"start", [array[:cut], array[cut:]]), dtype=np.uint8)
    assert sealed[:5].tobytes() + sealed[13:].tobytes() == b"start" + array.tobytes()
    assert int(sealed[5:9].view("<u4")[0]) == _wire.crc32c_portable(array)
    assert int(sealed[9:13].view("<u4")[0]) == _wire.crc32c_portable(sealed[:9])


@given(st.binary(max_size=70))
def test_bits_agree_with_numpy(data: bytes) -> None:
    """Any byte other than zero counts as true."""
    mask = np.frombuffer(data, dtype=np.uint8) & 0x81
    bits = _wire.pack_bits(mask)
    np.testing.assert_array_equal(bits, np.packbits(mask != 0, bitorder="little"))
    np.testing.assert_array_equal(_wire.unpack_bits(bits, len(mask)), mask != 0)
    assert _wire.count_bits(bits) == np.count_nonzero(mask)


@given(st.sets(st.integers(0, (1 << 32) - 1), max_size=40))
def test_deltas_round_trip_and_their_length_is_known(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    coded = _wire.delta_encode(indices, 1 << 32)
    assert len(coded) == _wire.delta_length(indices, 1 << 32)
    np.testing.assert_array_equal(_wire.delta_decode(coded, len(indices), 1 << 32), indices)


@given(st.sets(st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1)), max_size=60))
def test_rice_codes_round_trip_and_their_length_is_known(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    delta, rice = _wire.coded_lengths(indices, 1 << 32)
    assert delta == _wire.delta_length(indices, 1 << 32)
    if rice < 1 << 20:  # one gap of 2^31 after small ones takes megabytes of zeros
        coded = _wire.rice_encode(indices, 1 << 32, rice)
        np.testing.assert_array_equal(_wire.rice_decode(coded, len(indices), 1 << 32), indices)
        for wrong in (rice - 1, rice + 1):
            with pytest.raises(ValueError, match=r"changed while|below 0"):
                _wire.rice_encode(indices, 1 << 32, wrong)


def test_rice_codes_by_hand() -> None:
    """Size 8, count 2: the mean gap starts at 4, k = bit_width(0.48 * 4.5) = 2. Gap 0: quotient 0, '1', rest
    '00'. The mean stays near 4. Gap 6: quotient 1, '01', rest 2, '01'. Lowest bit first: 100 01 01 -> 0b1010001."""
    coded = _wire.rice_encode(np.array([0, 7]), 8, 1)
    assert coded.tolist() == [0b1010001]


@given(st.binary(max_size=40), st.integers(0, 200), st.sampled_from([0, 1, 9, 1000, 1 << 32]))
def test_any_bytes_as_rice_codes_give_sorted_indices_or_a_refusal(data: bytes, count: int, size: int) -> None:
    try:
        indices = _wire.rice_decode(np.frombuffer(data, dtype=np.uint8), count, size)
    except ValueError:
        return
    assert len(indices) == count
    assert np.all(np.diff(indices, prepend=-1) > 0)
    assert count == 0 or indices[-1] < size


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5])
def test_a_gap_grows_by_a_byte_at_every_seventh_bit(groups: int) -> None:
    below, above = (1 << 7 * groups) - 1, 1 << 7 * groups
    if below < 1 << 32:
        assert _wire.delta_length(np.array([below]), 1 << 32) == groups
    if above < 1 << 32:
        assert _wire.delta_length(np.array([above]), 1 << 32) == groups + 1


@given(st.sets(st.integers(0, 199), max_size=200))
def test_bits_and_indices(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    bits = _wire.bits_from_indices(indices, 200)
    assert np.flatnonzero(_wire.unpack_bits(bits, 200)).tolist() == indices.tolist()
    np.testing.assert_array_equal(_wire.indices_from_bits(bits, 200, len(indices)), indices)


@pytest.mark.parametrize("size", [-1, (1 << 32) + 1, 1 << 62])
def test_sizes_out_of_range_are_refused_before_anything_is_allocated(size: int) -> None:
    one, byte = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint8)
    calls = (
        lambda: _wire.unpack_bits(byte, size),
        lambda: _wire.delta_length(one, size),
        lambda: _wire.delta_encode(one, size),
        lambda: _wire.delta_decode(byte, 1, size),
        lambda: _wire.bits_from_indices(one, size),
        lambda: _wire.indices_from_bits(byte, size, 0),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"size must be in \[0, 2\^32\]"):
            call()


@pytest.mark.parametrize("count", [-1, 3, 1 << 62])
def test_counts_are_checked_against_the_bytes_present(count: int) -> None:
    two = np.zeros(2, dtype=np.uint8)
    with pytest.raises(ValueError, match=f"2 bytes cannot hold {count} delta-coded indices"):
        _wire.delta_decode(two, count, 100)
    with pytest.raises(ValueError, match=f"0 bits set where {count} are announced"):
        _wire.indices_from_bits(two, 16, count)


def test_arrays_of_another_type_or_layout_are_refused_not_converted() -> None:
    with pytest.raises(TypeError):
        _wire.pack_bits(np.zeros(8, dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _wire.pack_bits(np.zeros(8, dtype=np.uint8)[::2])
    with pytest.raises(TypeError):
        _wire.delta_length(np.zeros(8, dtype=np.int32), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"index 8 is outside \[0, 8\)"):
        _wire.bits_from_indices(np.array([8]), 8)
