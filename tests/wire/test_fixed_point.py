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


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_adds_values_and_weight_at_the_true_elements_only(density: float) -> None:
    mask = np.random.default_rng(1).random(1001) < density
    values, sums, weights = numbers(int(mask.sum())), np.full(1001, 5), np.full(1001, 7)
    wanted = np.full(1001, 5)
    wanted[mask] += np.rint(values.astype(np.float64) * SCALE).astype(np.int64)
    fixed_point.add_where(sums, weights, mask, values, SCALE, 11)
    assert (sums == wanted).all()
    assert (weights == 7 + 11 * mask).all()


def test_numbers_that_do_not_agree_are_refused_and_nothing_is_added() -> None:
    sums, weights, mask = np.zeros(4, np.int64), np.zeros(4, np.int64), np.array([True, False, True, False])
    with pytest.raises(ValueError, match="4 sums, but 3 values"):
        fixed_point.add(sums, numbers(3), SCALE)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"a mask with 2 true elements for {count} values"):
            fixed_point.add_where(sums, weights, mask, numbers(count), SCALE, 1)
    with pytest.raises(ValueError, match="4 sums, but 3 weights"):
        fixed_point.add_where(sums, weights[:3], mask, numbers(2), SCALE, 1)
    with pytest.raises(ValueError, match="4 sums, but 5 bits"):
        fixed_point.add_where(sums, weights, np.append(mask, False), numbers(2), SCALE, 1)
    assert not sums.any()
    assert not weights.any()


def test_magnitude() -> None:
    assert fixed_point.magnitude(np.zeros((0, 3), np.float32)) == 0.0
    assert fixed_point.magnitude(np.array([[1.5, -2.5], [0.0, 2.0]], np.float32)) == 2.5
    assert fixed_point.magnitude(np.array([1.0, -np.inf], np.float32)) == np.inf
    assert np.isnan(fixed_point.magnitude(np.array([np.inf, np.nan, 1.0], np.float32)))
