"""What a message is made of: values, masks and indices; `quantised` and `ternary` have the other kinds of section.

Arrays may be numpy arrays or torch tensors of any device; a section keeps a C-contiguous numpy array, shared
with the caller where possible, so it must not change before it is encoded. Decoded arrays are fresh and
writable. Values are float32, float16, bfloat16, float64 or int64; `wire` ("fp32", "fp16", "bf16", "fp64",
"int64") narrows them on the way (float32 as fp16 or bf16, float64 as fp32), and they come back in their own
type. Infinities and NaN are carried as they are.
"""

import operator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsparse.wire import indexset
from fedsparse.wire.bits import Bits
from fedsparse.wire.dtypes import BY_WIRE, Array, Dtype, as_array, dtype_of, legal_wire, narrow, to_tensor
from fedsparse.wire.error import WireError
from fedsparse.wire.layout import Layout, Packed


def _raw(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def keep(section: object, **fields: object) -> None:
    """Set the fields of a frozen section."""
    section.__dict__.update(fields)


def _as_values(values: Array | Tensor, wire: str | None, dimensions: tuple[int, ...]) -> tuple[Array, str]:
    array = as_array(values, "values")
    if array.ndim not in dimensions:
        raise WireError(f"values must have {' or '.join(map(str, dimensions))} dimensions, got {array.ndim}")
    return array, legal_wire(dtype_of(array, "values"), wire).wire


def _as_bits(mask: Array | Tensor | Bits) -> Bits:
    if isinstance(mask, Bits):
        as_size(mask.size)
        return mask
    array = as_array(mask, "mask")
    if array.ndim != 1 or array.dtype != np.bool_:
        raise WireError(f"mask must be a 1-D bool array, got {array.ndim}-D {array.dtype.name}")
    as_size(len(array))
    return Bits.of_mask(array)


def _as_indices(indices: Array | Tensor) -> Array:
    array = as_array(indices, "indices")
    if array.ndim != 1 or array.dtype != np.int64:
        raise WireError(f"indices must be a 1-D int64 array, got {array.ndim}-D {array.dtype.name}")
    return array


def as_size(size: int) -> int:
    """A legal number of elements; WireError on any other."""
    size = operator.index(size)
    if not 0 <= size <= indexset.MAX_SIZE:
        raise WireError(f"size must be in [0, 2^32], got {size}")
    return size


class _WithValues:
    """Values that travel in `wire` and come back in their own type."""

    wire: str
    values: Array

    @property
    def dtype(self) -> Dtype:
        """Type of the values before and after the way."""
        return dtype_of(self.values, "values")

    def tensor(self) -> Tensor:
        """The values as a tensor that shares their memory (bfloat16 where they are bf16)."""
        return to_tensor(self.values, self.dtype)

    def _coded_values(self) -> Array:
        return _raw(narrow(self.values, self.dtype, BY_WIRE[self.wire]))

    @property
    def _value_bytes(self) -> int:
        return self.values.size * BY_WIRE[self.wire].itemsize


@dataclass(frozen=True, eq=False, init=False)
class Values(_WithValues):
    """Numbers of shape [count] or [count, width], nothing else: both sides know what they belong to.

    `values` is another name of `array`.
    """

    array: Array
    wire: str

    def __init__(self, array: Array | Tensor, wire: str | None = None) -> None:
        kept, wire = _as_values(array, wire, (1, 2))
        keep(self, array=kept, values=kept, wire=wire)

    @classmethod
    def of_checked(cls, array: Array, wire: str) -> "Values":
        """The section of an array and a type that are known to be legal, as those of a header that was checked."""
        section = object.__new__(cls)
        section.__dict__.update(array=array, values=array, wire=wire)
        return section

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire."""
        return self._value_bytes

    def pack(self) -> Packed:
        """Layout and byte chunks; WireError on overflow."""
        width = None if self.array.ndim == 1 else self.array.shape[1]
        layout = Layout(1, self.dtype, BY_WIRE[self.wire], count=len(self.array), width=width)
        return layout, [self._coded_values()]


@dataclass(frozen=True, eq=False, init=False)
class Bitmap:
    """A bool mask of shape [size], held as its bits; coded as a bitmap, or as its indices where that is shorter."""

    bits: Bits

    def __init__(self, mask: Array | Tensor | Bits) -> None:
        keep(self, bits=_as_bits(mask))

    @property
    def mask(self) -> Array:
        """The mask as a new bool array [size]."""
        return self.bits.mask()

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire (found by coding the mask)."""
        return len(indexset.encode_bits(self.bits)[2])

    def pack(self) -> Packed:
        """Layout and byte chunks."""
        coding, count, coded = indexset.encode_bits(self.bits)
        return Layout(2, coding=coding, size=len(self.bits), count=count), [coded]


@dataclass(frozen=True, eq=False, init=False)
class Pairs(_WithValues):
    """Sorted, unique int64 `indices` [count] in [0, size), and for each a value or a row of values."""

    indices: Array
    values: Array
    size: int
    wire: str

    def __init__(self, indices: Array | Tensor, values: Array | Tensor, size: int, wire: str | None = None) -> None:
        kept, wire = _as_values(values, wire, (1, 2))
        positions = _as_indices(indices)
        if len(positions) != len(kept):
            raise WireError(f"{len(positions)} indices cannot be paired with {len(kept)} values")
        keep(self, indices=positions, values=kept, size=as_size(size), wire=wire)

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire (found by coding the indices)."""
        return len(indexset.encode_indices(self.indices, self.size)[1]) + self._value_bytes

    def pack(self) -> Packed:
        """Layout and byte chunks; ValueError on overflow or indices out of place."""
        coding, coded = indexset.encode_indices(self.indices, self.size)
        width = None if self.values.ndim == 1 else self.values.shape[1]
        layout = Layout(3, self.dtype, BY_WIRE[self.wire], coding, self.size, len(self.indices), width)
        return layout, [coded, self._coded_values()]


@dataclass(frozen=True, eq=False, init=False)
class Indices:
    """Sorted, unique int64 indices [count] in [0, size)."""

    indices: Array
    size: int

    def __init__(self, indices: Array | Tensor, size: int) -> None:
        keep(self, indices=_as_indices(indices), size=as_size(size))

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire (found by coding the indices)."""
        return len(indexset.encode_indices(self.indices, self.size)[1])

    def pack(self) -> Packed:
        """Layout and byte chunks; ValueError on indices out of place."""
        coding, coded = indexset.encode_indices(self.indices, self.size)
        return Layout(4, coding=coding, size=self.size, count=len(self.indices)), [coded]


@dataclass(frozen=True, eq=False, init=False)
class Masked(_WithValues):
    """A bool mask [size], held as its bits, and the values [count] of its true elements, in order."""

    bits: Bits
    values: Array
    wire: str

    def __init__(self, mask: Array | Tensor | Bits, values: Array | Tensor, wire: str | None = None) -> None:
        kept, wire = _as_values(values, wire, (1,))
        bits = _as_bits(mask)
        if bits.count != len(kept):
            raise WireError(f"a mask with {bits.count} true elements cannot carry {len(kept)} values")
        keep(self, bits=bits, values=kept, wire=wire)

    @property
    def mask(self) -> Array:
        """The mask as a new bool array [size]."""
        return self.bits.mask()

    @property
    def nbytes(self) -> int:
        """Payload bytes on the wire (found by coding the mask)."""
        return len(indexset.encode_bits(self.bits)[2]) + self._value_bytes

    def pack(self) -> Packed:
        """Layout and byte chunks; WireError on overflow."""
        coding, count, coded = indexset.encode_bits(self.bits)
        layout = Layout(5, self.dtype, BY_WIRE[self.wire], coding, len(self.bits), count)
        return layout, [coded, self._coded_values()]
