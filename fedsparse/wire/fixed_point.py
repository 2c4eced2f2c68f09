"""Sums of float32 numbers as integers in one pass: adding in any order gives the same bits.

A number x counts as rint(x * scale), ties to even, the product in float64; |x * scale| must be below 2^63.
"""

from fedsparse import _wire
from fedsparse.wire.dtypes import Array


def add(sums: Array, values: Array, scale: float) -> None:
    """Add float32 values to int64 sums of the same shape, in place; ValueError where sizes differ."""
    _wire.add_fixed(sums.reshape(-1), values.reshape(-1), scale)


def magnitude(values: Array) -> float:
    """The largest |value| of a float32 array of any shape: NaN where it holds one, 0 where it is empty."""
    return _wire.magnitude(values.reshape(-1))
