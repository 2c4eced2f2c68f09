"""Values of one byte: unbiased, bounded in error, reproducible to the bit, and judged when decoded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import forge

from fedsparse.wire import Quantised, Values, ValuesSpec, WireError, decode, encode, sizes
from fedsparse.wire.layout import Layout

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def through(section: Quantised) -> np.ndarray:
    data = encode("k", 0, 0, {"s": section})
    assert sizes(data)["s"] == section.nbytes == 8 * len(section.lengths) + len(section.array)
    received = decode(data, {"s": ValuesSpec(size=len(section.array))}).sections["s"]
    assert isinstance(received, Values)
    return received.array


def test_by_hand() -> None:
    """127 steps to the largest magnitude: 12.7 has scale 0.1, and whole steps are carried exactly, whatever the draw."""
    array = through(Quantised(np.array([12.7, -12.7, 0.5, 0.0, 2.0], dtype=np.float32), [3, 2]))
    np.testing.assert_allclose(array, [12.7, -12.7, 0.5, 0, 2], atol=0.101)
    assert array[[0, 1, 3, 4]].tolist() == np.array([12.7, -12.7, 0, 2], dtype=np.float32).tolist()


@given(st.lists(st.lists(FINITE, max_size=20), max_size=5), st.integers(0, 2**63 - 1))
def test_an_error_is_below_one_step_of_its_own_segment(segments: list[list[float]], seed: int) -> None:
    values = np.array([x for segment in segments for x in segment], dtype=np.float32)
    received = through(Quantised(values, [len(segment) for segment in segments], seed))
    start = 0
    for segment in segments:
        part = slice(start, start := start + len(segment))
        step = float(max(map(abs, segment), default=0.0)) / 127 or 1e-30
        # of a segment whose magnitudes are all below 2^-100 nothing is left
        step = max(step, 2.0**-100)
        assert np.all(np.abs(received[part].astype(np.float64) - values[part]) <= step * (1 + 1e-5))


def test_rounding_is_right_on_average_and_draws_do_not_repeat() -> None:
    """0.3 steps become 1 step three times in ten: of 10^6 draws 300,000 with a standard deviation of 458."""
    values = np.full(1_000_001, 0.3, dtype=np.float32)
    values[-1] = 127.0
    received = through(Quantised(values, [len(values)], seed=1))[:-1]
    assert set(received.tolist()) == {0.0, 1.0}
    assert abs(received.sum() - 300_000) < 5 * 458
    neighbours = np.corrcoef(received[:-1], received[1:])[0, 1]
    assert abs(neighbours) < 5e-3


def test_the_seed_and_the_position_alone_decide_the_draw() -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    first = encode("k", 0, 0, {"s": Quantised(values, [2000, 3000], seed=7)})
    assert first == encode("k", 0, 0, {"s": Quantised(torch.from_numpy(values), (2000, 3000), seed=7)})
    assert first != encode("k", 0, 0, {"s": Quantised(values, [2000, 3000], seed=8)})


def mixed(x: int) -> int:
    """The draws' 32-bit mixing function, one operation at a time."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ x >> shift) * factor & 0xFFFF_FFFF
    return x


def test_the_bytes_are_those_of_the_definition() -> None:
    """floor(127 x / max + u) in float32, u the upper 24 bits of mixed(position ^ key): so on every machine."""
    seed = 0x1234_5678_9ABC_DEF0
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    key = mixed(mixed(seed & 0xFFFF_FFFF) ^ seed >> 32)
    wanted: list[int] = []
    for part in (values[:300], values[300:]):
        steps = np.float32(127) / np.abs(part).max()
        for x in part:
            u = np.float32(mixed(len(wanted) ^ key) >> 8) * np.float32(2.0**-24)
            wanted.append(int(np.floor(x * steps + u)))
    lengths, scales, coded = Quantised(values, [300, 700], seed).pack()[1]
    assert coded.view(np.int8).tolist() == wanted
    assert lengths.view("<u4").tolist() == [300, 700]
    assert scales.view("<f4").tolist() == [
        np.abs(part).max() / np.float32(127) for part in (values[:300], values[300:])
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_position(bad: float) -> None:
    values = np.ones(5, dtype=np.float32)
    values[3] = bad
    with pytest.raises(WireError, match=r"section 'w': value at position 3 is not finite, and int8 cannot carry it"):
        encode("k", 0, 0, {"w": Quantised(values, [2, 3])})


@pytest.mark.parametrize(
    ("array", "lengths", "sentence"),
    [
        (np.zeros(2), [2], "quantised values must be 1-D float32, got 1-D float64"),
        (np.zeros((2, 2), dtype=np.float32), [4], "quantised values must be 1-D float32, got 2-D float32"),
        (np.zeros(3, dtype=np.float32), [2], "segments of 2 values cannot hold 3"),
        (np.zeros(3, dtype=np.float32), [-1, 4], "lengths must be a list of numbers in [0, 2^32)"),
    ],
)
def test_what_cannot_be_quantised_is_refused(array: np.ndarray, lengths: list[int], sentence: str) -> None:
    with pytest.raises(WireError) as caught:
        Quantised(array, lengths)
    assert str(caught.value) == sentence


def quantised(lengths: list[int], scales: list[float], values: list[int], **claims: int) -> bytes:
    payload = np.array(lengths, dtype="<u4").tobytes() + np.array(scales, dtype="<f4").tobytes()
    payload += np.array(values, dtype=np.int8).tobytes()
    numbers = {"size": len(lengths), "count": len(values), "nbytes": len(payload)} | claims
    return forge({"s": Layout(6, **numbers)}, payload)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (quantised([2, 2], [1, 1], [1, 2, 3]), "segment 1 has 2 values where 1 are left"),
        (quantised([1, 1], [1, 1], [1, 2, 3]), "1 of 3 values belong to no segment"),
        (quantised([1], [-1.0], [1]), "a scale is -1.000000, not a finite number of 0 or more"),
        (quantised([1], [float("nan")], [1]), "a scale is nan, not a finite number of 0 or more"),
        (quantised([1], [float("inf")], [1]), "a scale is inf, not a finite number of 0 or more"),
        (quantised([2], [1.0], [1, -128]), "a quantised value is -128, the least is -127"),
        (
            quantised([1], [1.0], [1], count=1 << 38),
            "274877906944 quantised values in 1 segments take 274877906952 bytes, not 9",
        ),
        (
            quantised([1], [1.0], [1], size=1 << 36),
            "1 quantised values in 68719476736 segments take 549755813889 bytes, not 9",
        ),
    ],
)
def test_each_forgery_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(data)
    assert str(caught.value) == f"section 's': {sentence}"


def test_a_scale_so_large_that_values_overflow_is_refused() -> None:
    with pytest.raises(WireError, match="not a finite number"):
        decode(quantised([1], [3e38], [2]))


def test_where_values_of_another_type_are_expected_quantised_ones_are_refused() -> None:
    data = encode("k", 0, 0, {"s": Quantised(np.zeros(3, dtype=np.float32), [3])})
    with pytest.raises(WireError, match="its dtype is float32, expected float64"):
        decode(data, {"s": ValuesSpec(3, dtype="float64")})
    with pytest.raises(WireError, match="its size is 3, expected 4"):
        decode(data, {"s": ValuesSpec(4)})
