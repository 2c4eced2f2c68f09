"""Sums in fixed point against numpy in float64 and Python's integers."""

import numpy as np
import pytest

from fedsparse.wire import fixed_point

SCALE = 0.3 * 2.0**40


def numbers(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(count) * 2.0 ** rng.integers(-45, 21, count)).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 7, 4097])
def test_adds_what_rounding_in_float64_gives(count: int) -> None:
    values, sums = numbers(count), np.arange(count, dtype=np.int64)
    wanted = [i + round(float(v) * SCALE) for i, v in enumerate(values)]
    fixed_point.add(sums, values, SCALE)
    assert sums.tolist() == wanted


def test_ties_go_to_even_and_shapes_are_kept() -> None:
    sums = np.zeros((2, 3), dtype=np.int64)
    fixed_point.add(sums, np.array([[0.5, 1.5, 2.5], [-0.5, -1.5, -2.5]], dtype=np.float32), 1.0)
    assert sums.tolist() == [[0, 2, 2], [0, -2, -2]]


def test_numbers_that_do_not_agree_are_refused_and_nothing_is_added() -> None:
    sums = np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="4 sums, but 3 values"):
        fixed_point.add(sums, numbers(3), SCALE)
    assert not sums.any()


def test_magnitude() -> None:
    assert fixed_point.magnitude(np.zeros((0, 3), np.float32)) == 0.0
    assert fixed_point.magnitude(np.array([[1.5, -2.5], [0.0, 2.0]], np.float32)) == 2.5
    assert fixed_point.magnitude(np.array([1.0, -np.inf], np.float32)) == np.inf
    assert np.isnan(fixed_point.magnitude(np.array([np.inf, np.nan, 1.0], np.float32)))
