"""Number types on the wire, and the lossy conversions between them.

numpy has no bfloat16: such values are uint16 arrays of bit patterns here, and `to_tensor` gives them their
type.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsparse import _wire
from fedsparse.wire.error import WireError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Dtype:
    """A number type: its name as the type of an array and as `wire`, its code, and what holds it. Each exists once."""

    name: str
    wire: str
    code: int
    numpy: np.dtype[Any]
    torch: torch.dtype
    infinity: int | None = None  # bit pattern of +inf; None for integers

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.numpy.itemsize


_ALL = (
    Dtype("float32", "fp32", 1, np.dtype("<f4"), torch.float32, 0x7F80_0000),
    Dtype("float16", "fp16", 2, np.dtype("<f2"), torch.float16, 0x7C00),
    Dtype("bfloat16", "bf16", 3, np.dtype("<u2"), torch.bfloat16, 0x7F80),
    Dtype("float64", "fp64", 4, np.dtype("<f8"), torch.float64, 0x7FF0 << 48),
    Dtype("int64", "int64", 5, np.dtype("<i8"), torch.int64),
)
DTYPES = {dtype.name: dtype for dtype in _ALL}
BY_WIRE = {dtype.wire: dtype for dtype in _ALL}
BY_CODE = {dtype.code: dtype for dtype in _ALL}
_BY_NUMPY = {dtype.numpy: dtype for dtype in _ALL}
_UNSIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}

# Array type -> wire types that may carry it, itself first.
LEGAL_WIRES = {
    "float32": ("fp32", "fp16", "bf16"),
    "float16": ("fp16",),
    "bfloat16": ("bf16",),
    "float64": ("fp64", "fp32"),
    "int64": ("int64",),
}
Carrier = Literal["fp32", "fp16", "bf16", "int8"]
"""How a model's float32 numbers may travel."""


def as_array(values: Array | Tensor, argument: str) -> Array:
    """A C-contiguous, aligned numpy array of `values` (shared where possible; bfloat16 as uint16 bits)."""
    if type(values) is np.ndarray and values.flags.carray:
        return values
    if isinstance(values, Tensor):
        tensor = values.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.numpy()
    if not isinstance(values, np.ndarray):
        raise WireError(f"{argument} must be a numpy array or a torch tensor, got {type(values).__name__}")
    return np.require(np.asarray(values), requirements=["C", "A"])


def dtype_of(array: Array, argument: str) -> Dtype:
    """The wire's name for the array's type; uint16 arrays are bfloat16 bit patterns."""
    found = _BY_NUMPY.get(array.dtype)
    if found is None:
        raise WireError(f"{argument} must be {', '.join(dtype.name for dtype in _ALL)}, got {array.dtype.name}")
    return found


def legal_wire(dtype: Dtype, wire: str | None) -> Dtype:
    """The type that carries `dtype`: itself when `wire` is None, else the one asked for, if legal."""
    legal = LEGAL_WIRES[dtype.name]
    if wire is not None and wire not in legal:
        raise WireError(f"wire for {dtype.name} values must be one of {', '.join(legal)}, got {wire!r}")
    return dtype if wire is None else BY_WIRE[wire]


def finite(values: Array | Tensor) -> bool:
    """Whether no value is infinite or NaN (about memory speed; integers are always finite)."""
    array = as_array(values, "values")
    return _finite(array, dtype_of(array, "values"))


def checksum(array: Array | Tensor) -> int:
    """CRC-32C over the array's bytes."""
    return _wire.crc32c(as_array(array, "array").reshape(-1).view(np.uint8))


def _finite(array: Array, dtype: Dtype) -> bool:
    if dtype.infinity is None:
        return True
    # reshape first: a zero-dimensional array cannot be viewed as another type
    return _wire.all_finite(array.reshape(-1).view(_UNSIGNED[dtype.itemsize]), dtype.infinity)


def to_tensor(array: Array, dtype: Dtype) -> Tensor:
    """A tensor that shares the array's memory, uint16 bit patterns becoming bfloat16."""
    if not array.flags.writeable:
        array = array.copy()
    if dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def convert(array: Array, source: Dtype, target: Dtype) -> Array:
    """Round `array` to `target` (nearest, ties to even); the same array if the types agree."""
    if source is target:
        return array
    # numpy asks for large pages and torch does not: half the time of a conversion is else page faults
    converted = np.empty(array.shape, dtype=target.numpy)
    to_tensor(converted, target).copy_(to_tensor(array, source))
    return converted


def narrow(array: Array, source: Dtype, target: Dtype) -> Array:
    """`convert` that refuses a finite value turning infinite; infinities and NaN pass."""
    narrowed = convert(array, source, target)
    if source is target or _finite(narrowed, target):
        return narrowed
    overflowed = np.isinf(convert(narrowed, target, source)) & np.isfinite(array)
    if overflowed.any():
        position = int(np.flatnonzero(overflowed)[0])
        largest = torch.finfo(target.torch).max
        raise WireError(
            f"value {array.flat[position]:.6g} at position {position} overflows {target.wire}"
            f" (largest magnitude {largest:.6g})"
        )
    return narrowed
