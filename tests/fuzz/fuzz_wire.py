"""Coverage-guided fuzzing of `fedsparse.wire.decode` with atheris: `python tests/fuzz/fuzz_wire.py [libFuzzer options]`.

Run with an interpreter that has atheris beside fedsparse. An input is decoded as it is, then once more under checksums
that fit it, as a malicious sender would send it; anything but a message or a WireError ends the run with the input kept.
What is believed is encoded again and must decode to the same bytes. The corpus starts from a message with every kind of
section. `tests/fuzz/README.md` records a run.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedsparse.wire"]):
    from fedsparse.wire import Quantised, WireError, decode, encode

sys.path.insert(0, str(Path(__file__).parent.parent / "wire"))
from wire_samples import one_of_each, reseal

LIMIT = 1 << 16


def check(data: bytes) -> None:
    """Decode; what is believed must survive another way."""
    try:
        message = decode(data, limit=LIMIT)
    except WireError:
        return
    if any(isinstance(section, Quantised) for section in message.sections.values()):
        return  # stochastic rounding need not find the same bytes
    again = encode(message.kind, message.round, message.sender, message.sections)
    once_more = decode(again, limit=1 << 32)
    assert encode(once_more.kind, once_more.round, once_more.sender, once_more.sections) == again


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    check(data)
    if len(data) >= 28 and 28 <= int.from_bytes(data[16:20], "little") <= len(data):
        check(reseal(data))


if __name__ == "__main__":
    corpus = Path(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else None
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / "one-of-each").write_bytes(encode("k", 0, 0, one_of_each()))
        for name, section in one_of_each().items():
            (corpus / name).write_bytes(encode("k", 0, 0, {name: section}))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
