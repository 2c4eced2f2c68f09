"""No damaged or forged message is believed, and none makes the decoder allocate what it merely claims."""

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from wire_samples import forge, one_of_each, reseal

from fedsparse.wire import Bitmap, Section, Values, WireError, decode, encode, header, indexset, sizes
from fedsparse.wire.dtypes import DTYPES
from fedsparse.wire.layout import Layout

FP32 = DTYPES["float32"]
BITMAP, DELTA, RAW, RICE = indexset.BITMAP, indexset.DELTA, indexset.RAW, indexset.RICE
GOOD = encode("k", 0, 0, {"a": Values(np.ones(2, dtype=np.float32)), "b": Bitmap(np.ones(9, dtype=bool))})
START = sizes(GOOD)[""]


def at(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def grown(extra: bytes, lines: int = 0) -> bytes:
    """GOOD with `extra` at the end of its table, and `lines` more announced."""
    start = GOOD[: START - 8] + extra
    start = at(start, 16, (START + len(extra)).to_bytes(4, "little"))
    return reseal(at(start, 6, bytes([2 + lines])) + bytes(8) + GOOD[START:])


def indices(coding: int, size: int, count: int, payload: bytes, code: int = 4) -> bytes:
    return forge({"s": Layout(code, None, None, coding, size, count, None, len(payload))}, payload)


def raw(*numbers: int) -> bytes:
    return np.array(numbers, dtype="<u4").tobytes()


MESSAGE_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a message of 0 bytes is too short for a header"),
    "short": (GOOD[:27], "a message of 27 bytes is too short for a header"),
    "magic": (at(GOOD, 0, b"PK"), "the message starts with b'PKPW', not with the magic b'FSPW'"),
    "version": (at(GOOD, 4, b"\x02"), "the message has format version 2, this library reads 1"),
    "header cut": (GOOD[: START - 1], f"the header claims {START} bytes of a message of {START - 1}"),
    "header length": (at(GOOD, 16, b"\x05"), f"the header claims 5 bytes of a message of {len(GOOD)}"),
    "header flip": (at(GOOD, 8, b"\x01"), "the header does not match its checksum"),
    "truncated": (GOOD[:-1], f"the message is truncated: {len(GOOD) - 1} bytes of {len(GOOD)}"),
    "trailing": (GOOD + b"xy", f"2 bytes trail the {len(GOOD)} bytes of the message"),
    "payload flip": (at(GOOD, START, b"\x01"), "the payload does not match its checksum"),
    "duplicate": (reseal(GOOD.replace(b"\x01b\x02", b"\x01a\x02")), "section 'a' appears twice"),
    "name coding": (reseal(GOOD.replace(b"\x01b\x02", b"\x01\xff\x02")), "a section's name is not UTF-8: b'\\xff'"),
    "table short": (grown(b"", lines=1), "the header ends inside its table"),
    "table long": (grown(b"zz"), "2 bytes follow the 2 lines of the table"),
    "no name": (grown(b"\0\1\x11\0\0\0\0\0", lines=1), "a section's name is empty"),
}

SECTION_CASES: dict[str, tuple[bytes, str]] = {
    "long number": (
        grown(b"\1s\1\x11\0\x80\0\0\0\0", lines=1),
        "the table holds a number that is not in its shortest form",
    ),
    "big number": (grown(b"\1s\1\x11\0" + b"\xff" * 6 + b"\0\0\0\0", lines=1), "the table holds a number over 2^40"),
    "endless number": (
        grown(b"\1s\1\x11\0" + b"\x80" * 9 + b"\0\0\0\0", lines=1),
        "the table holds a number of over six bytes",
    ),
    "types": (grown(b"\1s\1\x77\0\0\0\0\0", lines=1), "unknown types of values 0x77"),
    "types of no wire": (grown(b"\1s\1\x21\0\0\0\0\0", lines=1), "unknown types of values 0x21"),
    "section type": (forge({"s": Layout(9)}), "unknown section type 9"),
    "values untyped": (forge({"s": Layout(1)}), "Values lack a type of values"),
    "bitmap typed": (forge({"s": Layout(2, FP32, FP32, BITMAP)}), "Bitmap cannot have a type of values"),
    "bitmap width": (forge({"s": Layout(2, coding=BITMAP, width=3)}), "Bitmap cannot have a width"),
    "masked width": (forge({"s": Layout(5, FP32, FP32, BITMAP, width=3)}), "Masked cannot have a width"),
    "values indexed": (forge({"s": Layout(1, FP32, FP32, size=3)}), "Values cannot have indices"),
    "coding": (forge({"s": Layout(4, coding=7)}), "unknown coding of indices 7"),
    "uncoded": (forge({"s": Layout(4)}), "unknown coding of indices 0"),
    "size": (indices(DELTA, (1 << 32) + 1, 0, b""), "size 4294967297 exceeds 2^32"),
    "values count": (
        forge({"s": Layout(1, FP32, FP32, count=1 << 38, nbytes=8)}, bytes(8)),
        "its values take 1099511627776 bytes, but 8 are announced",
    ),
    "values width": (
        forge({"s": Layout(1, FP32, FP32, count=2, width=2, nbytes=8)}, bytes(8)),
        "its values take 16 bytes, but 8 are announced",
    ),
    "count over size": (indices(DELTA, 2, 3, bytes(3)), "3 indices are announced among only 2 positions"),
    "delta claims": (
        indices(DELTA, 1 << 32, 1 << 31, bytes(3)),
        "2147483648 indices among 4294967296 positions take 2147483648 to 10737418240 bytes here, not 3",
    ),
    "raw claims": (
        indices(RAW, 1 << 32, 1 << 31, bytes(4)),
        "2147483648 indices among 4294967296 positions take 8589934592 bytes here, not 4",
    ),
    "bitmap claims": (
        indices(BITMAP, 1 << 32, 0, bytes(4)),
        "0 indices among 4294967296 positions take 536870912 bytes here, not 4",
    ),
    "pairs claim": (
        forge({"s": Layout(3, FP32, FP32, DELTA, 1 << 32, 1 << 20, None, 8)}, bytes(8)),
        "1048576 indices among 4294967296 positions take 1048576 to 5242880 bytes here, not -4194296",
    ),
    "raw unsorted": (indices(RAW, 9, 2, raw(3, 2)), "indices must increase strictly, but 2 follows 3 at position 1"),
    "raw duplicate": (indices(RAW, 9, 2, raw(3, 3)), "indices must increase strictly, but 3 follows 3 at position 1"),
    "raw range": (indices(RAW, 9, 2, raw(3, 9)), "index 9 at position 1 is outside [0, 9)"),
    "delta range": (indices(DELTA, 9, 2, b"\3\5"), "index 9 at position 1 is outside [0, 9)"),
    "delta early end": (indices(DELTA, 9999, 2, b"\x80\1\x80\x80"), "delta-coded indices end after 1 of 2"),
    "delta rest": (indices(DELTA, 9, 2, b"\1\1\1"), "1 bytes follow the 2 delta-coded indices"),
    "delta long form": (indices(DELTA, 9, 1, b"\x83\0"), "the gap at position 0 is not coded in its shortest form"),
    "delta long gap": (indices(DELTA, 9, 2, b"\xff" * 6), "the gap at position 0 takes over five bytes"),
    "rice claims": (
        indices(RICE, 1 << 32, 1 << 31, bytes(3)),
        "2147483648 indices among 4294967296 positions take 268435456 to 8589934592 bytes here, not 3",
    ),
    "rice range": (indices(RICE, 8, 2, b"\x71"), "the index at position 1 is outside [0, 8)"),
    "rice early end": (indices(RICE, 1 << 20, 2, b"\x00\x00"), "Rice-coded indices end after 0 of 2"),
    "rice rest": (indices(RICE, 8, 2, b"\x51\x00"), "bits follow the 2 Rice-coded indices"),
    "rice padding": (indices(RICE, 8, 2, b"\xd1"), "bits follow the 2 Rice-coded indices"),
    "indices padding": (indices(BITMAP, 3, 1, b"\x08"), "the bitmap has padding bits set after its 3 bits"),
    "indices count": (indices(BITMAP, 3, 1, b"\x03"), "the bitmap has 2 bits set where 1 are announced"),
    "bitmap padding": (indices(BITMAP, 3, 1, b"\x81", code=2), "the bitmap has padding bits set after its 3 bits"),
    "bitmap count": (indices(BITMAP, 3, 2, b"\x01", code=2), "the bitmap has 1 bits set where 2 are announced"),
    "bitmap range": (indices(DELTA, 9, 2, b"\3\5", code=2), "index 9 at position 1 is outside [0, 9)"),
    "masked count": (
        forge({"s": Layout(5, FP32, FP32, BITMAP, 3, 2, None, 9)}, b"\x07" + bytes(8)),
        "the bitmap has 3 bits set where 2 are announced",
    ),
    "unfolding": (
        indices(DELTA, 1 << 32, 0, b"", code=2),
        "its mask of 4294967296 elements exceeds the limit of 268435456 bytes for masks without an expected size",
    ),
}

CASES = MESSAGE_CASES | {case: (data, f"section 's': {sentence}") for case, (data, sentence) in SECTION_CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_each_corruption_is_named(case: str) -> None:
    data, sentence = CASES[case]
    with pytest.raises(WireError) as caught:
        decode(data)
    assert str(caught.value) == sentence


def test_the_message_that_the_cases_damage_is_good() -> None:
    assert list(decode(GOOD).sections) == ["a", "b"]
    assert reseal(GOOD) == GOOD
    assert list(decode(forge({"s": Layout(1, FP32, FP32)})).sections) == ["s"]


def test_sizes_refuses_what_decode_refuses_in_header_and_length() -> None:
    for data in (GOOD[:-1], GOOD + b"x", at(GOOD, 8, b"\x01"), b""):
        with pytest.raises(WireError):
            sizes(data)


def test_every_single_byte_change_of_a_message_is_refused() -> None:
    data = bytearray(encode("k", 0, 0, one_of_each()))
    for place, byte in enumerate(bytes(data)):
        for change in range(1, 256):
            data[place] = byte ^ change
            with pytest.raises(WireError):
                decode(data)
        data[place] = byte
    decode(data)


def test_every_truncation_and_extension_is_refused() -> None:
    data = encode("k", 0, 0, one_of_each())
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:length])
        with pytest.raises(WireError):
            decode(data + data[: length + 1])


def survives(data: bytes, judge: Callable[[bytes], object]) -> bool:
    """Whether `data` is believed; anything but a WireError passes through and fails the test."""
    try:
        judge(data)
    except WireError:
        return False
    return True


def forgeries(data: bytes, changes: Iterable[int]) -> Iterator[bytes]:
    """Every byte changed by every one of `changes`, and the checksums made to fit."""
    for change in changes:
        for place in range(len(data)):
            forged = at(data, place, bytes([data[place] ^ change]))
            length = int.from_bytes(forged[16:20], "little")
            yield reseal(forged) if 28 <= length <= len(forged) else forged


def test_forged_bytes_never_raise_anything_else() -> None:
    data = encode("k", 0, 0, one_of_each() | {"empty": Bitmap(np.zeros(0, dtype=bool))})
    judged = [
        survives(forged, lambda message: decode(message, limit=4096)) for forged in forgeries(data, range(1, 256, 2))
    ]
    assert 1000 < sum(judged) < len(judged) - 1000  # labels and values are free, structure is not


def test_forged_bytes_allocate_next_to_nothing() -> None:
    """No message takes more than 32 KiB while it is read; what stays are the 64 headers that the codec keeps."""
    data = encode("k", 0, 0, one_of_each())
    tracemalloc.start()
    try:
        np.zeros(1 << 20, dtype=np.uint8)
        assert tracemalloc.get_traced_memory()[1] >= 1 << 20, "numpy's memory is not traced"
        start, worst = tracemalloc.get_traced_memory()[0], 0
        for forged in forgeries(data, [1, 2, 4, 8, 16, 32, 64, 128, 255]):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            survives(forged, lambda message: decode(message, limit=4096))
            worst = max(worst, tracemalloc.get_traced_memory()[1] - before)
        assert worst < 1 << 15
        assert tracemalloc.get_traced_memory()[0] - start < 1 << 18
    finally:
        tracemalloc.stop()


def test_claims_of_gigabytes_allocate_next_to_nothing() -> None:
    tracemalloc.start()
    try:
        for name in ("values count", "delta claims", "raw claims", "bitmap claims", "pairs claim", "unfolding"):
            with pytest.raises(WireError):
                decode(CASES[name][0])
        assert tracemalloc.get_traced_memory()[1] < 1 << 17
    finally:
        tracemalloc.stop()


def test_random_bytes_and_random_tables() -> None:
    """Noise, noise behind a good preamble, and tables of random numbers under correct checksums."""
    rng = random.Random(0)
    layouts = [section.pack()[0] for section in one_of_each().values()]
    for _ in range(4000):
        noise = rng.randbytes(rng.randrange(120))
        assert not survives(noise, decode)
        assert not survives(GOOD[:20] + noise, decode)
        layout = rng.choice(layouts)
        changes = {
            rng.choice(["size", "count", "width", "nbytes", "code", "coding"]): rng.choice([0, 1, 2, 3, 5, 9, 1 << 33])
        }
        if max(changes.values()) > 255:
            changes = {key: value for key, value in changes.items() if key not in ("code", "coding")}
        payload = rng.randbytes(layout.nbytes or rng.randrange(40))
        table = {"s": layout._replace(**{"nbytes": len(payload)} | changes)}  # type: ignore[arg-type]
        survives(forge(table, payload), lambda data: decode(data, limit=4096))


def test_the_limit_counts_all_masks_together_and_can_be_raised() -> None:
    few = np.zeros(3000, dtype=bool)
    sections: dict[str, Section] = {"a": Bitmap(few), "b": Bitmap(few)}
    data = encode("k", 0, 0, sections)
    with pytest.raises(WireError, match="section 'b': its mask of 3000 elements exceeds the limit of 5999 bytes"):
        decode(data, limit=5999)
    assert len(decode(data, limit=6000).sections) == 2


def test_header_reads_what_it_wrote() -> None:
    head = header.read(memoryview(GOOD))
    again = header.write(head.kind, head.round, head.sender, head.table)
    assert again == GOOD[: head.length - 8]
    assert head._replace(kind="other").payload_bytes == len(GOOD) - head.length
