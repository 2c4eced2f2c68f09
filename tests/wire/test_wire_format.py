"""The format itself: bytes derived by hand, so that a message written today is read by every later version."""

import numpy as np
from wire_samples import same

from fedsparse.wire import Bitmap, Indices, Section, Values, decode, encode


def crc32c_by_definition(data: bytes) -> int:
    """One bit at a time: reflected polynomial 0x82F63B78, all ones before, complemented after."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


SECTIONS: dict[str, Section] = {
    "w": Values(np.array([[1.0], [-2.0]], dtype=np.float32), wire="fp16"),
    "m": Bitmap(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=bool)),
    "i": Indices(np.array([5, 300], dtype=np.int64), 1000),
}
HEADER = bytes.fromhex(
    "46535057 01 01 0300"  # "FSPW", version 1, kind of one byte, three sections
    "03000000 ffffffff"  # round 3, sender -1
    "39000000"  # 57 bytes of header: 20 + 1 + 9 + 9 + 10 + 8
    "75"  # kind "u"
    "0177 01 12 00  00 02 02 04"  # "w": Values, float32 as fp16; count 2, width 1 (+ 1), 4 bytes
    "016d 02 00 01  09 04 00 02"  # "m": Bitmap, coded as bitmap; size 9, count 4, 2 bytes
    "0169 04 00 02  e807 02 00 03"  # "i": Indices, coded as deltas; size 1000 = 7 * 128 + 104, count 2, 3 bytes
)
PAYLOAD = bytes.fromhex(
    "003c 00c0"  # fp16 1.0 = 0x3c00, -2.0 = 0xc000
    "0d 01"  # bits 0, 2, 3 of the first byte, bit 0 of the second
    "05 a602"  # gap 5; 300 - 5 - 1 = 294 = 2 * 128 + 38, low group first with the top bit set
)


def test_the_bytes_of_a_small_message() -> None:
    header = HEADER + crc32c_by_definition(PAYLOAD).to_bytes(4, "little")
    message = header + crc32c_by_definition(header).to_bytes(4, "little") + PAYLOAD
    assert encode("u", 3, -1, SECTIONS).hex() == message.hex()
    decoded = decode(message)
    assert (decoded.kind, decoded.round, decoded.sender) == ("u", 3, -1)
    for name, section in SECTIONS.items():
        same(section, decoded.sections[name])


def test_crc32c_check_value() -> None:
    """The catalogue's check value of CRC-32C over the digits 1 to 9."""
    assert crc32c_by_definition(b"123456789") == 0xE3069283
