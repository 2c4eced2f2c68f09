"""What cannot be sent is refused when the section is made, or when the message is encoded, in one sentence."""

import numpy as np
import pytest

from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Values, WireError, encode


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Values([1.0]), "values must be a numpy array or a torch tensor, got list"),
        (lambda: Values(np.zeros((1, 1, 1))), "values must have 1 or 2 dimensions, got 3"),
        (lambda: Values(np.float32(1)), "values must be a numpy array or a torch tensor, got float32"),
        (
            lambda: Values(np.zeros(2, dtype=np.int32)),
            "values must be float32, float16, bfloat16, float64, int64, got int32",
        ),
        (
            lambda: Values(np.zeros(2, dtype=np.float16), wire="fp32"),
            "wire for float16 values must be one of fp16, got 'fp32'",
        ),
        (
            lambda: Values(np.zeros(2, dtype=np.float32), wire="int8"),
            "wire for float32 values must be one of fp32, fp16, bf16, got 'int8'",
        ),
        (lambda: Bitmap(np.zeros(2)), "mask must be a 1-D bool array, got 1-D float64"),
        (lambda: Bitmap(np.zeros((2, 2), dtype=bool)), "mask must be a 1-D bool array, got 2-D bool"),
        (
            lambda: Indices(np.zeros(2, dtype=np.int32), 2),
            "indices must be a 1-D int64 array, got 1-D int32",
        ),
        (lambda: Indices(np.zeros(0, dtype=np.int64), -1), "size must be in [0, 2^32], got -1"),
        (lambda: Pairs(np.arange(2), np.zeros(3), 4), "2 indices cannot be paired with 3 values"),
        (
            lambda: Masked(np.ones(3, dtype=bool), np.zeros(2)),
            "a mask with 3 true elements cannot carry 2 values",
        ),
    ],
)
def test_sections_refuse_what_they_cannot_hold(make: object, sentence: str) -> None:
    assert callable(make)
    with pytest.raises(WireError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        ([3, 2], "indices must increase strictly, but 2 follows 3 at position 1"),
        ([1, 3, 3], "indices must increase strictly, but 3 follows 3 at position 2"),
        ([1, 10], "index 10 at position 1 is outside [0, 10)"),
        ([-1, 1], "index -1 at position 0 is outside [0, 10)"),
    ],
)
def test_encode_refuses_indices_out_of_place(indices: list[int], sentence: str) -> None:
    array = np.array(indices, dtype=np.int64)
    for section in (Indices(array, 10), Pairs(array, np.zeros(len(array)), 10)):
        with pytest.raises(WireError) as caught:
            encode("k", 0, 0, {"w": section})
        assert str(caught.value) == f"section 'w': {sentence}"


@pytest.mark.parametrize(
    ("kind", "round", "sender", "name", "sentence"),
    [
        ("", 0, 0, "s", "kind must take 1 to 255 bytes of UTF-8, got 0"),
        ("é" * 128, 0, 0, "s", "kind must take 1 to 255 bytes of UTF-8, got 256"),
        ("k", -1, 0, "s", "round must be in [0, 2^32), got -1"),
        ("k", 0, 1 << 31, "s", "sender must be in [-2^31, 2^31), got 2147483648"),
        ("k", 0, 0, "", "section name '' must take 1 to 255 bytes of UTF-8, got 0"),
    ],
)
def test_encode_refuses_labels_out_of_range(kind: str, round: int, sender: int, name: str, sentence: str) -> None:
    with pytest.raises(WireError) as caught:
        encode(kind, round, sender, {name: Bitmap(np.ones(1, dtype=bool))})
    assert str(caught.value) == sentence
