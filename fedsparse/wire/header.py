"""The header of a message: who sends what, in which shape, under two checksums.

Byte layout, little-endian:

    0   4  magic "FSPW"
    4   1  version, 1
    5   1  length of kind
    6   2  number of sections
    8   4  round, unsigned
    12  4  sender, signed (-1: the server)
    16  4  length of the header, checksums included
    20     kind, UTF-8
           the table, one line a section: length of name (1), name (UTF-8), type (1), types of the values (1:
           array's in the high, wire's in the low nibble), coding of the indices (1), then LEB128: size,
           count, 0 for 1-D values or width + 1, payload bytes
    -8  4  CRC-32C of the payload
    -4  4  CRC-32C of the header up to here

The payloads of the sections follow in the order of the table: indices first, then values, nothing between.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedsparse import _wire
from fedsparse.wire import dtypes, indexset
from fedsparse.wire.error import WireError
from fedsparse.wire.kinds import BY_CODE, WITH_INDICES, WITH_VALUES, WITH_WIDTH
from fedsparse.wire.layout import Layout
from fedsparse.wire.quantised import SEGMENT_BYTES, Quantised
from fedsparse.wire.ternary import Ternary

MAGIC = b"FSPW"
VERSION = 1
PREAMBLE = struct.Struct("<4sBBHIiI")
CHECKSUMS = struct.Struct("<II")
MAX_NUMBER = 1 << 40
MAX_TEXT = 255
KEPT_BODY = 4096


class Header(NamedTuple):
    """A header that passed its own checksum and structural checks; `length` is its bytes."""

    kind: str
    round: int
    sender: int
    table: dict[str, Layout]
    payload_checksum: int
    length: int

    @property
    def payload_bytes(self) -> int:
        """Bytes that must follow the header."""
        return sum(layout.nbytes for layout in self.table.values())


def _text(value: str, argument: str) -> bytes:
    coded = value.encode()
    if not 1 <= len(coded) <= MAX_TEXT:
        raise WireError(f"{argument} must take 1 to {MAX_TEXT} bytes of UTF-8, got {len(coded)}")
    return coded


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value >= 0x80:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def write(kind: str, round: int, sender: int, table: dict[str, Layout]) -> bytes:
    """The header's bytes but the two checksums; WireError on a number or name out of range."""
    if not 0 <= round < 1 << 32:
        raise WireError(f"round must be in [0, 2^32), got {round}")
    if not -(1 << 31) <= sender < 1 << 31:
        raise WireError(f"sender must be in [-2^31, 2^31), got {sender}")
    if len(table) >= 1 << 16:
        raise WireError(f"a message holds at most 65535 sections, got {len(table)}")
    coded_kind = _text(kind, "kind")
    body = coded_kind + b"".join(_line(name, layout) for name, layout in table.items())
    length = PREAMBLE.size + len(body) + CHECKSUMS.size
    return PREAMBLE.pack(MAGIC, VERSION, len(coded_kind), len(table), round, sender, length) + body


@lru_cache(maxsize=256)
def _line(name: str, layout: Layout) -> bytes:
    coded = _text(name, f"section name {name!r}")
    types = (layout.dtype.code << 4 | layout.wire.code) if layout.dtype and layout.wire else 0
    width = 0 if layout.width is None else layout.width + 1
    numbers = (layout.size, layout.count, width, layout.nbytes)
    if max(numbers) > MAX_NUMBER:
        raise WireError(f"section {name!r} is too large: {max(numbers)} exceeds 2^40")
    head = bytes((len(coded),)) + coded + bytes((layout.code, types, layout.coding))
    return head + b"".join(map(_varint, numbers))


def _checksum(data: bytes) -> int:
    return _wire.crc32c(np.frombuffer(data, dtype=np.uint8))


def read(data: memoryview) -> Header:
    """The header at the start of `data` (bytes); WireError on anything that is not exactly one."""
    if len(data) < PREAMBLE.size + CHECKSUMS.size:
        raise WireError(f"a message of {len(data)} bytes is too short for a header")
    magic, version, kind_length, sections, round, sender, length = PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"the message starts with {magic!r}, not with the magic {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"the message has format version {version}, this library reads {VERSION}")
    if not PREAMBLE.size + CHECKSUMS.size <= length <= len(data):
        raise WireError(f"the header claims {length} bytes of a message of {len(data)}")
    header = bytes(data[:length])
    payload_checksum, checksum = CHECKSUMS.unpack_from(header, length - CHECKSUMS.size)
    if _checksum(header[:-4]) != checksum:
        raise WireError("the header does not match its checksum")
    body = header[PREAMBLE.size : -CHECKSUMS.size]
    read_body = _read_body_again if len(body) <= KEPT_BODY else _read_body
    kind, table = read_body(body, kind_length, sections)
    return Header(kind, round, sender, dict(table), payload_checksum, length)


def _read_body(body: bytes, kind_length: int, sections: int) -> tuple[str, dict[str, Layout]]:
    """The kind and the table."""
    reader = _Reader(body, 0)
    kind = reader.text(kind_length, "the kind")
    table: dict[str, Layout] = {}
    for _ in range(sections):
        name = reader.text(reader.byte(), "a section's name")
        if name in table:
            raise WireError(f"section {name!r} appears twice")
        try:
            table[name] = _check(_read_layout(reader))
        except WireError as error:
            raise WireError(f"section {name!r}: {error}") from None
    if reader.at != len(reader.data):
        raise WireError(f"{len(reader.data) - reader.at} bytes follow the {sections} lines of the table")
    return kind, table


# The reports of a round differ in their senders and payloads, not in their tables.
_read_body_again = lru_cache(maxsize=64)(_read_body)


def _read_layout(reader: "_Reader") -> Layout:
    kind, types, coding = reader.byte(), reader.byte(), reader.byte()
    size, count, width, nbytes = (reader.number() for _ in range(4))
    dtype, wire = dtypes.BY_CODE.get(types >> 4), dtypes.BY_CODE.get(types & 15)
    if types != 0 and (dtype is None or wire is None or wire.wire not in dtypes.LEGAL_WIRES[dtype.name]):
        raise WireError(f"unknown types of values {types:#04x}")
    return Layout(kind, dtype, wire, coding, size, count, width - 1 if width else None, nbytes)


def _check(layout: Layout) -> Layout:
    """Refuse a line that contradicts itself, so that later code may allocate from its numbers."""
    kind = BY_CODE.get(layout.code)
    if kind is None:
        raise WireError(f"unknown section type {layout.code}")
    if (kind in WITH_VALUES) != (layout.dtype is not None):
        raise WireError(f"{kind.__name__} {'lack' if kind in WITH_VALUES else 'cannot have'} a type of values")
    if layout.width is not None and kind not in WITH_WIDTH:
        raise WireError(f"{kind.__name__} cannot have a width")
    index_bytes = layout.nbytes - layout.value_bytes
    if kind is Quantised:
        wanted = SEGMENT_BYTES * layout.size + layout.count
        if layout.coding != indexset.NONE or layout.nbytes != wanted:
            raise WireError(
                f"{layout.count} quantised values in {layout.size} segments take {wanted} bytes, not {layout.nbytes}"
            )
        return layout
    if kind is Ternary:
        index_bytes -= indexset.bitmap_bytes(layout.count)
    if kind not in WITH_INDICES:
        if layout.coding != indexset.NONE or layout.size != 0:
            raise WireError(f"{kind.__name__} cannot have indices")
        if index_bytes != 0:
            raise WireError(f"its values take {layout.value_bytes} bytes, but {layout.nbytes} are announced")
        return layout
    if layout.coding not in indexset.CODINGS:
        raise WireError(f"unknown coding of indices {layout.coding}")
    if layout.size > indexset.MAX_SIZE:
        raise WireError(f"size {layout.size} exceeds 2^32")
    indexset.check_length(layout.coding, index_bytes, layout.size, layout.count)
    return layout


class _Reader:
    """Bounds-checked reading of the part of a header that varies in length."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, length: int) -> bytes:
        taken = self.data[self.at : self.at + length]
        if len(taken) != length:
            raise WireError("the header ends inside its table")
        self.at += length
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def text(self, length: int, what: str) -> str:
        coded = self.take(length)
        try:
            text = coded.decode()
        except UnicodeDecodeError:
            raise WireError(f"{what} is not UTF-8: {coded!r}") from None
        if not text:
            raise WireError(f"{what} is empty")
        return text

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > MAX_NUMBER:
                raise WireError("the table holds a number over 2^40")
            if byte < 0x80:
                break
            shift += 7
            if shift > 42:
                raise WireError("the table holds a number of over six bytes")
        if byte == 0 and shift:
            raise WireError("the table holds a number that is not in its shortest form")
        return value
