"""Messages for the codec's tests, and ways to forge them."""

import struct

import numpy as np

from fedsparse import _wire
from fedsparse.wire import Bitmap, Bits, Indices, Masked, Pairs, Quantised, Section, Ternary, Values, header
from fedsparse.wire.layout import Layout


def crc(data: bytes) -> int:
    return _wire.crc32c(np.frombuffer(data, dtype=np.uint8))


def reseal(data: bytes) -> bytes:
    """The same message with checksums that fit it: what a malicious sender would send."""
    length = struct.unpack_from("<I", data, 16)[0]
    start = data[: length - 8] + crc(data[length:]).to_bytes(4, "little")
    return start + crc(start).to_bytes(4, "little") + data[length:]


def forge(table: dict[str, Layout], payload: bytes = b"") -> bytes:
    """A message with correct checksums and whatever table and payload it is given."""
    return _wire.seal(header.write("k", 0, 0, table), [np.frombuffer(payload, dtype=np.uint8)])


def one_of_each() -> dict[str, Section]:
    """A small message: every type of section, every coding of indices, one- and two-dimensional values."""
    few = np.zeros(64, dtype=bool)
    few[[3, 60]] = True
    far = np.array([1 << 29, 1 << 30, (1 << 31) + 5], dtype=np.int64)
    return {
        "values": Values(np.array([1.5, -2.0, np.nan, np.inf], dtype=np.float32)),
        "half": Values(np.arange(6, dtype=np.float32).reshape(3, 2), wire="fp16"),
        "dense": Bitmap(np.arange(19) % 3 != 0),
        "sparse": Bitmap(few),
        "far": Indices(far, 1 << 32),
        "near": Indices(np.array([1, 2, 200], dtype=np.int64), 1000),
        "pairs": Pairs(np.array([0, 8], dtype=np.int64), np.ones((2, 3)), 9, wire="fp32"),
        "quantised": Quantised(np.array([127.0, -1.0, 0.0, 127.0], dtype=np.float32), [2, 1, 1]),
        "ternary": Ternary(np.array([0, 1, -1, 0, 0, 0, 0, 0, 1, 0], dtype=np.int8)),
        "masked": Masked(np.array([True, False, True]), np.array([7, -7], dtype=np.int64)),
    }


def same(left: Section, right: Section) -> None:
    """Assert that two sections carry the same bits in the same types and shapes."""
    assert type(left) is type(right)
    assert vars(left).keys() == vars(right).keys()
    for name, wanted in vars(left).items():
        found = vars(right)[name]
        if isinstance(wanted, Bits):
            assert found.size == wanted.size
            wanted, found = wanted.data, found.data
        if isinstance(wanted, np.ndarray):
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            assert found.tobytes() == wanted.tobytes()
        else:
            assert found == wanted
