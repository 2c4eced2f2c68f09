"""Messages to bytes and back.

    data = encode("update", round=3, sender=17, sections={"values": Values(values, wire="fp16")})
    message = decode(data, expect={"values": ValuesSpec(4096)})

Decoding trusts nothing: checksums, structure and the caller's `expect` are checked on the header before
anything is allocated, and every index and bit after. Every failure is a WireError that names what is wrong in
one sentence.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsparse import _wire
from fedsparse.wire import header, indexset
from fedsparse.wire.dtypes import Array, convert
from fedsparse.wire.error import WireError
from fedsparse.wire.kinds import BY_CODE, UNFOLDING, Section
from fedsparse.wire.layout import Layout
from fedsparse.wire.quantised import Quantised
from fedsparse.wire.sections import Bitmap, Indices, Masked, Pairs, Values
from fedsparse.wire.spec import Spec, check_all
from fedsparse.wire.ternary import Ternary

# Bytes that masks coded by their indices may unfold to when no Spec vouches for their size.
UNFOLD_LIMIT = 1 << 28
HEADER = ""


@dataclass(frozen=True)
class Message:
    """A decoded message; its arrays are fresh, writable and independent of the bytes they came from."""

    kind: str
    round: int
    sender: int
    sections: dict[str, Section]


def encode(kind: str, round: int, sender: int, sections: Mapping[str, Section]) -> bytes:
    """The bytes of a message; `sender` is a client's number, or -1 for the server.

    Raises WireError, naming the section, on a value that overflows its wire type and on indices that are not
    sorted, unique and within their size.
    """
    table: dict[str, Layout] = {}
    payload: list[Array] = []
    for name, section in sections.items():
        try:
            layout, chunks = section.pack()
        except ValueError as error:
            raise WireError(f"section {name!r}: {error}") from None
        table[name] = Layout(*layout[:-1], sum(map(len, chunks)))
        payload += chunks
    return _wire.seal(header.write(kind, operator.index(round), operator.index(sender), table), payload)


def decode(
    data: bytes | bytearray | memoryview, expect: Mapping[str, Spec] | None = None, limit: int = UNFOLD_LIMIT
) -> Message:
    """The message in `data`, or WireError.

    With `expect`, a missing, unexpected or differing section is refused. Memory is bounded by the bytes
    present, by the sizes in `expect`, and by `limit` bytes for masks that are coded by their indices and have
    no expected size.
    """
    view = memoryview(data).cast("B")
    head = _read_header(view)
    if expect is not None:
        check_all(expect, head.table)
    _check_unfolding(head.table, expect or {}, limit)
    payload = np.frombuffer(view, dtype=np.uint8)[head.length :]
    if _wire.crc32c(payload) != head.payload_checksum:
        raise WireError("the payload does not match its checksum")
    sections: dict[str, Section] = {}
    at = 0
    for name, layout in head.table.items():
        try:
            sections[name] = _unpack(layout, payload[at : at + layout.nbytes])
        except ValueError as error:
            raise WireError(f"section {name!r}: {error}") from None
        at += layout.nbytes
    return Message(head.kind, head.round, head.sender, sections)


def sizes(data: bytes | bytearray | memoryview) -> dict[str, int]:
    """Payload bytes by section, and under the empty name (`HEADER`) those of the header.

    They add up to len(data). Checks the header and the length of the message, not the payload.
    """
    head = _read_header(memoryview(data).cast("B"))
    return {HEADER: head.length} | {name: layout.nbytes for name, layout in head.table.items()}


def _read_header(view: memoryview) -> header.Header:
    head = header.read(view)
    wanted = head.length + head.payload_bytes
    if len(view) < wanted:
        raise WireError(f"the message is truncated: {len(view)} bytes of {wanted}")
    if len(view) > wanted:
        raise WireError(f"{len(view) - wanted} bytes trail the {wanted} bytes of the message")
    return head


def _check_unfolding(table: dict[str, Layout], expect: Mapping[str, Spec], limit: int) -> None:
    unfolded = 0
    for name, layout in table.items():
        vouched = name in expect and expect[name].size is not None
        if BY_CODE[layout.code] in UNFOLDING and layout.coding != indexset.BITMAP and not vouched:
            unfolded += layout.size
            if unfolded > limit:
                raise WireError(
                    f"section {name!r}: its mask of {layout.size} elements exceeds the limit of {limit} bytes"
                    " for masks without an expected size"
                )


def _unpack(layout: Layout, data: Array) -> Section:
    kind = BY_CODE[layout.code]
    if kind is Quantised:
        return Quantised.unpack(layout, data)
    if kind is Ternary:
        return Ternary.unpack(layout, data)
    if kind is Values:
        return Values.of_checked(*_values(layout, data))
    index_bytes = layout.nbytes - layout.value_bytes
    index_data, value_data = data[:index_bytes], data[index_bytes:]
    if kind is Pairs:
        indices = indexset.decode_indices(layout.coding, index_data, layout.size, layout.count)
        values, wire = _values(layout, value_data)
        return Pairs(indices, values, layout.size, wire)
    if kind is Indices:
        indices = indexset.decode_indices(layout.coding, index_data, layout.size, layout.count)
        return Indices(indices, layout.size)
    bits = indexset.decode_bits(layout.coding, index_data, layout.size, layout.count)
    return Bitmap(bits) if kind is Bitmap else Masked(bits, *_values(layout, value_data))


def _values(layout: Layout, data: Array) -> tuple[Array, str]:
    """(values in their own type, name of the type that carried them); fresh memory, aligned."""
    assert layout.dtype is not None
    assert layout.wire is not None
    values = data.view(layout.wire.numpy).copy()
    if layout.width is not None:
        values = values.reshape(layout.count, layout.width)
    return convert(values, layout.wire, layout.dtype), layout.wire.wire
