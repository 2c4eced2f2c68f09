"""Values as one byte each: int8 with a scale for each segment, a layer's parameter, and stochastic rounding.

A value x of a segment with scale s = max |x| / 127 travels as floor(x / s + u), u uniform in [0, 1): right on average,
off by less than s. The draw depends on (seed, position) only, so that a message has the same bytes on every machine.
Payload: the segments' lengths (uint32), their scales (float32), then the values (int8).

The rounding has no bias, and its errors average out over the clients of a round; a client's own over its rounds too
where it feeds them back (`wire.error_feedback`, `fedsparse/federated/feedback.py`), at the price of what it keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsparse import _wire
from fedsparse.wire.dtypes import Array, as_array
from fedsparse.wire.error import WireError
from fedsparse.wire.layout import Layout, Packed
from fedsparse.wire.sections import Values, keep

SEGMENT_BYTES = 8


@dataclass(frozen=True, eq=False, init=False)
class Quantised(Values):
    """float32 values [count] in consecutive segments of the given `lengths`, which sum to count.

    Decoded, `array` holds what the bytes stand for, and the section is an ordinary `Values` to its reader.
    """

    lengths: Array
    seed: int

    def __init__(self, array: Array | Tensor, lengths: Sequence[int] | Array, seed: int = 0) -> None:
        values = as_array(array, "values")
        if values.ndim != 1 or values.dtype != np.float32:
            raise WireError(f"quantised values must be 1-D float32, got {values.ndim}-D {values.dtype.name}")
        segments = np.asarray(lengths, dtype=np.int64)
        if segments.ndim != 1 or (len(segments) and not 0 <= segments.min() <= segments.max() < 1 << 32):
            raise WireError("lengths must be a list of numbers in [0, 2^32)")
        if segments.sum() != len(values):
            raise WireError(f"segments of {segments.sum()} values cannot hold {len(values)}")
        keep(self, array=values, values=values, wire="int8", lengths=segments, seed=seed)

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire."""
        return SEGMENT_BYTES * len(self.lengths) + len(self.array)

    def pack(self) -> Packed:
        """Layout and byte chunks; ValueError on a value that is not finite."""
        quantised, scales = _wire.quantise(self.array, self.lengths, self.seed)
        layout = Layout(6, size=len(self.lengths), count=len(self.array))
        return layout, [self.lengths.astype("<u4").view(np.uint8), scales.view(np.uint8), quantised.view(np.uint8)]

    @staticmethod
    def unpack(layout: Layout, data: Array) -> "Quantised":
        """The section in `data` (uint8); ValueError on lengths that do not add up, a bad scale, or a value of -128."""
        size = layout.size
        lengths = np.frombuffer(data[: 4 * size].tobytes(), dtype="<u4").astype(np.int64)
        scales = np.frombuffer(data[4 * size : 8 * size].tobytes(), dtype="<f4")
        return Quantised(_wire.dequantise(data[8 * size :].view(np.int8), lengths, scales), lengths)
