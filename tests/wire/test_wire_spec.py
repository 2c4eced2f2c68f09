"""What a receiver expects is checked by name and number, from the header alone."""

import numpy as np
import pytest
from wire_samples import forge, one_of_each

from fedsparse.wire import (
    Bitmap,
    BitmapSpec,
    IndicesSpec,
    MaskedSpec,
    PairsSpec,
    Spec,
    TernarySpec,
    ValuesSpec,
    WireError,
    decode,
    encode,
    indexset,
)
from fedsparse.wire.layout import Layout

FITS: dict[str, Spec] = {
    "values": ValuesSpec(4),
    "half": ValuesSpec(3, width=2),
    "dense": BitmapSpec(19, count=12),
    "sparse": BitmapSpec(64),
    "far": IndicesSpec(1 << 32, count=3),
    "near": IndicesSpec(),
    "pairs": PairsSpec(9, count=2, dtype="float64", width=3),
    "quantised": ValuesSpec(4),
    "ternary": TernarySpec(10, count=3),
    "masked": MaskedSpec(3, dtype=None),
}


def test_a_message_that_fits_is_decoded_with_or_without_optional_sections() -> None:
    data = encode("k", 0, 0, one_of_each())
    assert list(decode(data, FITS).sections) == list(FITS)
    assert list(decode(data, FITS | {"more": ValuesSpec(1, optional=True)}).sections) == list(FITS)
    assert list(decode(data, FITS | {"values": ValuesSpec(optional=True)}).sections) == list(FITS)


@pytest.mark.parametrize(
    ("name", "spec", "sentence"),
    [
        ("values", ValuesSpec(5), "section 'values': its size is 4, expected 5"),
        ("values", ValuesSpec(4, dtype="float16"), "section 'values': its dtype is float32, expected float16"),
        ("values", ValuesSpec(4, width=1), "section 'values': its width is None, expected 1"),
        ("values", BitmapSpec(4), "section 'values': its type is Values, expected Bitmap"),
        ("half", ValuesSpec(3), "section 'half': its width is 2, expected None"),
        ("dense", BitmapSpec(20), "section 'dense': its size is 19, expected 20"),
        ("dense", BitmapSpec(19, count=11), "section 'dense': its count is 12, expected 11"),
        ("dense", IndicesSpec(19), "section 'dense': its type is Bitmap, expected Indices"),
        ("far", IndicesSpec(1 << 32, count=4), "section 'far': its count is 3, expected 4"),
        ("near", IndicesSpec(999), "section 'near': its size is 1000, expected 999"),
        ("pairs", PairsSpec(9, width=3), "section 'pairs': its dtype is float64, expected float32"),
        ("pairs", PairsSpec(9, dtype=None), "section 'pairs': its width is 3, expected None"),
        ("pairs", PairsSpec(9, count=1, width=3), "section 'pairs': its count is 2, expected 1"),
        ("masked", MaskedSpec(3), "section 'masked': its dtype is int64, expected float32"),
        ("masked", MaskedSpec(3, dtype="int64", count=1), "section 'masked': its count is 2, expected 1"),
        ("masked", MaskedSpec(4, dtype="int64"), "section 'masked': its size is 3, expected 4"),
        ("more", ValuesSpec(1), "section 'more' (Values) is missing"),
    ],
)
def test_what_does_not_fit_is_named_with_its_numbers(name: str, spec: Spec, sentence: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(encode("k", 0, 0, one_of_each()), FITS | {name: spec})
    assert str(caught.value) == sentence


def test_an_unexpected_section_is_named() -> None:
    data = encode("k", 0, 0, {"a": Bitmap(np.ones(2, dtype=bool))})
    with pytest.raises(WireError, match=r"section 'a' is not expected here \(expected: none\)"):
        decode(data, {})
    with pytest.raises(WireError, match=r"section 'a' is not expected here \(expected: b, c\)"):
        decode(data, {"b": BitmapSpec(2), "c": BitmapSpec(optional=True)})


def test_an_expected_size_vouches_for_a_mask_beyond_the_limit() -> None:
    data = encode("k", 0, 0, {"a": Bitmap(np.zeros(5000, dtype=bool))})
    assert len(data) < 50
    with pytest.raises(WireError, match="exceeds the limit"):
        decode(data, {"a": BitmapSpec()}, limit=100)
    mask = decode(data, {"a": BitmapSpec(5000)}, limit=100).sections["a"]
    assert isinstance(mask, Bitmap)
    assert mask.mask.shape == (5000,)


def test_the_spec_is_checked_before_the_payload() -> None:
    """The payload here is damaged as well; the spec speaks first, so nothing was read."""
    data = forge({"s": Layout(2, coding=indexset.BITMAP, size=8, count=8, nbytes=1)}, b"\xff")
    with pytest.raises(WireError, match="its size is 8, expected 9"):
        decode(data[:-1] + b"\x00", {"s": BitmapSpec(9)})


def test_an_unknown_dtype_is_refused_when_the_spec_is_made() -> None:
    for make in (ValuesSpec, PairsSpec, MaskedSpec):
        with pytest.raises(
            ValueError,
            match="dtype must be one of float32, float16, bfloat16, float64, int64 or None, got 'fp32'",
        ):
            make(3, dtype="fp32")
