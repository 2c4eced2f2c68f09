"""Signs: -1, 0 or 1 for each element, in at most two bits.

Payload: the set of elements that are not 0, as any set of indices, then a bit for each of them, 1 where it is -1.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsparse import _wire
from fedsparse.wire import indexset
from fedsparse.wire.bits import Bits
from fedsparse.wire.dtypes import Array, as_array
from fedsparse.wire.error import WireError
from fedsparse.wire.layout import Layout, Packed
from fedsparse.wire.sections import as_size, keep


@dataclass(frozen=True, eq=False, init=False)
class Ternary:
    """int8 `signs` [size], each -1, 0 or 1."""

    signs: Array

    def __init__(self, signs: Array | Tensor) -> None:
        array = as_array(signs, "signs")
        if array.ndim != 1 or array.dtype != np.int8:
            raise WireError(f"signs must be a 1-D int8 array, got {array.ndim}-D {array.dtype.name}")
        if len(array) and not -1 <= array.min() <= array.max() <= 1:
            raise WireError("signs must be -1, 0 or 1")
        as_size(len(array))
        keep(self, signs=array)

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire (found by coding the signs)."""
        return sum(map(len, self.pack()[1]))

    def pack(self) -> Packed:
        """Layout and byte chunks."""
        coding, count, coded = indexset.encode_bits(Bits.of_mask(self.signs != 0))
        negative = _wire.pack_bits((self.signs[self.signs != 0] < 0).view(np.uint8))
        return Layout(7, coding=coding, size=len(self.signs), count=count), [coded, negative]

    @staticmethod
    def unpack(layout: Layout, data: Array) -> "Ternary":
        """The section in `data` (uint8); ValueError on a set that is wrong."""
        split = layout.nbytes - indexset.bitmap_bytes(layout.count)
        mask = indexset.decode_bits(layout.coding, data[:split], layout.size, layout.count).mask()
        negative = _wire.unpack_bits(data[split:], layout.count)
        signs = mask.view(np.int8)
        signs[mask] = 1 - 2 * negative.astype(np.int8)
        return Ternary(signs)
