"""All kinds of section by their code in the format."""

from fedsparse.wire.quantised import Quantised
from fedsparse.wire.sections import Bitmap, Indices, Masked, Pairs, Values
from fedsparse.wire.ternary import Ternary

Section = Values | Bitmap | Pairs | Indices | Masked | Quantised | Ternary
BY_CODE: dict[int, type[Section]] = {
    1: Values,
    2: Bitmap,
    3: Pairs,
    4: Indices,
    5: Masked,
    6: Quantised,
    7: Ternary,
}
WITH_VALUES = (Values, Pairs, Masked)
WITH_INDICES = (Bitmap, Pairs, Indices, Masked, Ternary)
WITH_WIDTH = (Values, Pairs)
UNFOLDING = (Bitmap, Masked, Ternary)
"""Sections that decode to an array of `size` elements, however few bytes they take."""
