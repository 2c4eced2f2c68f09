"""Coding of a set of indices in [0, size), as a mask or as sorted indices, in its shortest form.

Four codings: `BITMAP` takes size / 8 bytes; `RICE` adaptive Golomb-Rice codes of the gaps between indices, within a
few percent of a random mask's entropy (5.8 bits an index at 5 % density, 8.1 at 1 %); `DELTA` the LEB128 gaps, shorter
where gaps of very different size alternate; `RAW` four bytes an index. Equal lengths: bitmap, raw, delta, Rice.
"""

from typing import Any

import numpy as np

from fedsparse import _wire
from fedsparse.wire.bits import Bits
from fedsparse.wire.error import WireError

Array = np.ndarray[Any, np.dtype[Any]]

NONE, BITMAP, DELTA, RAW, RICE = 0, 1, 2, 3, 4
CODINGS = (BITMAP, DELTA, RAW, RICE)
MAX_SIZE = 1 << 32
MAX_DELTA_BYTES = 5


def bitmap_bytes(size: int) -> int:
    """Bytes of a bitmap of `size` bits."""
    return (size + 7) // 8


def encode_indices(indices: Array, size: int) -> tuple[int, Array]:
    """(coding, bytes) of sorted int64 indices; ValueError names the first one that is out of place."""
    delta, rice = _wire.coded_lengths(indices, size)
    lengths = {BITMAP: bitmap_bytes(size), RAW: 4 * len(indices), DELTA: delta, RICE: rice}
    coding = min(lengths, key=lengths.__getitem__)
    if coding == BITMAP:
        return coding, _wire.bits_from_indices(indices, size)
    if coding == RAW:
        return coding, indices.astype("<u4").view(np.uint8)
    if coding == RICE:
        return coding, _wire.rice_encode(indices, size, rice)
    return coding, _wire.delta_encode(indices, size)


def encode_bits(bits: Bits) -> tuple[int, int, Array]:
    """(coding, number of true elements, bytes) of a mask."""
    count = bits.count
    # gaps that average below 1 cost a bit and more for each element, so a dense mask needs no second look
    if 2 * count >= len(bits):
        return BITMAP, count, bits.data
    coding, coded = encode_indices(bits.indices(), len(bits))
    return coding, count, coded


def check_length(coding: int, length: int, size: int, count: int) -> None:
    """Refuse a coded length that cannot hold `count` indices in [0, size)."""
    if count > size:
        raise WireError(f"{count} indices are announced among only {size} positions")
    low, high = {
        BITMAP: (bitmap_bytes(size), bitmap_bytes(size)),
        DELTA: (count, MAX_DELTA_BYTES * count),
        RAW: (4 * count, 4 * count),
        RICE: ((count + 7) // 8, 4 * count),
    }[coding]
    if not low <= length <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise WireError(f"{count} indices among {size} positions take {wanted} bytes here, not {length}")


def decode_indices(coding: int, data: Array, size: int, count: int) -> Array:
    """The `count` sorted int64 indices coded in `data` (uint8), every one of them checked; a fresh array."""
    check_length(coding, len(data), size, count)
    if coding == BITMAP:
        return _wire.indices_from_bits(data, size, count)
    if coding == DELTA:
        return _wire.delta_decode(data, count, size)
    if coding == RICE:
        return _wire.rice_decode(data, count, size)
    indices = data.view("<u4").astype(np.int64)
    _wire.delta_length(indices, size)
    return indices


def decode_bits(coding: int, data: Array, size: int, count: int) -> Bits:
    """The mask [size] with `count` true elements coded in `data` (uint8); of its own memory."""
    check_length(coding, len(data), size, count)
    if coding == BITMAP:
        bits = Bits(data.copy(), size)
        if bits.count != count:
            raise WireError(f"the bitmap has {bits.count} bits set where {count} are announced")
        return bits
    return Bits(_wire.bits_from_indices(decode_indices(coding, data, size, count), size), size)
