"""What goes in comes out: every section, every type, every size around the byte boundary, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import one_of_each, same

from fedsparse.wire import (
    HEADER,
    Bitmap,
    Bits,
    Indices,
    Masked,
    Message,
    Pairs,
    Section,
    Values,
    WireError,
    decode,
    encode,
    finite,
    sizes,
)

NUMPY = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "fp64": np.float64, "int64": np.int64}
SHAPES = st.one_of(st.tuples(st.integers(0, 40)), st.tuples(st.integers(0, 6), st.integers(0, 5)))


def through(section: Section) -> Section:
    data = encode("k", 1, 2, {"s": section})
    assert sizes(data)["s"] == section.nbytes
    assert sum(sizes(data).values()) == len(data)
    return decode(data).sections["s"]


def bits(draw: st.DrawFn, shape: tuple[int, ...], wire: str) -> np.ndarray:
    """Any bit patterns whatever: subnormals, infinities and NaN with payloads included."""
    length = int(np.prod(shape)) * np.dtype(NUMPY[wire]).itemsize
    raw = draw(st.binary(min_size=length, max_size=length))
    return np.frombuffer(raw, dtype=NUMPY[wire]).reshape(shape).copy()


@st.composite
def values(draw: st.DrawFn) -> Values:
    wire = draw(st.sampled_from(sorted(NUMPY)))
    return Values(bits(draw, draw(SHAPES), wire), wire=wire)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(0, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return rng.random(size) < draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    size = draw(st.sampled_from([0, 1, 7, 8, 9, 1000, 1 << 20, 1 << 32]))
    chosen = draw(st.sets(st.integers(0, size - 1), max_size=30)) if size else set()
    return np.array(sorted(chosen), dtype=np.int64), size


@given(values())
def test_values_of_every_type_and_bit_pattern(section: Values) -> None:
    same(section, through(section))


@given(masks())
def test_bitmaps(mask: np.ndarray) -> None:
    same(Bitmap(mask), through(Bitmap(mask)))


@given(index_sets())
def test_indices(chosen: tuple[np.ndarray, int]) -> None:
    same(Indices(*chosen), through(Indices(*chosen)))


@given(st.data(), index_sets())
def test_pairs(data: st.DataObject, chosen: tuple[np.ndarray, int]) -> None:
    indices, size = chosen
    wire = data.draw(st.sampled_from(sorted(NUMPY)))
    width = data.draw(st.sampled_from([(), (0,), (1,), (4,)]))
    section = Pairs(indices, bits(data.draw, (len(indices), *width), wire), size, wire=wire)
    same(section, through(section))


@given(st.data(), masks())
def test_masked(data: st.DataObject, mask: np.ndarray) -> None:
    wire = data.draw(st.sampled_from(sorted(NUMPY)))
    section = Masked(mask, bits(data.draw, (int(mask.sum()),), wire), wire=wire)
    same(section, through(section))


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, (1 << 32) - 1),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=3),
)
def test_kind_round_sender_and_names(kind: str, round: int, sender: int, names: list[str]) -> None:
    sections: dict[str, Section] = {name: Values(np.full(i, i)) for i, name in enumerate(names)}
    message = decode(encode(kind, round, sender, sections))
    assert (message.kind, message.round, message.sender) == (kind, round, sender)
    assert list(message.sections) == names
    for name in names:
        same(sections[name], message.sections[name])


def test_every_section_in_one_message_and_its_bytes_by_section() -> None:
    """far: three gaps over 2^28 take 5 bytes each as deltas, 4 raw; near: 1 + 1 + 2; masks as commented."""
    data = encode("k", 0, 0, one_of_each())
    message = decode(bytearray(data))
    for name, section in one_of_each().items():
        same(section, message.sections[name])
    by_section = sizes(data)
    del by_section[HEADER]
    assert by_section == {
        "values": 16,
        "half": 12,
        "dense": 3,  # ceil(19 / 8)
        "sparse": 2,  # two gaps below 128, against 8 bytes of bitmap
        "far": 12,
        "near": 4,
        "pairs": 1 + 24,  # gaps 0 and 7 in a byte, six float32
        "quantised": 3 * 8 + 4,
        "ternary": 1 + 1,  # three gaps in a byte, three signs
        "masked": 1 + 16,
    }


def test_tensors_of_every_type_come_back() -> None:
    plain = torch.tensor([0.5, -3.0, 8.0])
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64):
        section = through(Values(plain.to(dtype)))
        assert isinstance(section, Values)
        assert section.tensor().dtype == dtype
        assert torch.equal(section.tensor(), plain.to(dtype))
    strided = torch.arange(12.0, requires_grad=True).reshape(3, 4).t()
    section = through(Values(strided))
    assert isinstance(section, Values)
    assert torch.equal(section.tensor(), strided.detach())
    mask = torch.tensor([True, False, True])
    section = through(Masked(mask, torch.ones(2)))
    assert isinstance(section, Masked)
    assert section.mask.tolist() == [True, False, True]


def test_decoded_arrays_are_fresh_and_writable() -> None:
    data = bytearray(encode("k", 0, 0, one_of_each()))
    first, second = decode(data), decode(data)
    data[:] = bytes(len(data))
    for name in one_of_each():
        for held in vars(first.sections[name]).values():
            array = held.data if isinstance(held, Bits) else held
            if isinstance(array, np.ndarray):
                array[...] = 0
    for name, section in one_of_each().items():
        same(section, second.sections[name])


@pytest.mark.parametrize(("wire", "exact"), [("fp16", np.float16), ("bf16", None)])
@given(st.lists(st.floats(-6e4, 6e4, width=32)))
def test_narrow_values_round_to_nearest(wire: str, exact: type | None, numbers: list[float]) -> None:
    array = np.array(numbers, dtype=np.float32)
    section = through(Values(array, wire=wire))
    assert isinstance(section, Values)
    assert section.array.dtype == np.float32
    wanted = array.astype(exact).astype(np.float32) if exact else torch.tensor(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(section.array, wanted)


@pytest.mark.parametrize(
    ("number", "dtype", "wire", "sentence"),
    [
        # 65520 is the midpoint between the largest fp16, 65504, and 2^16: ties to even go up
        (65520.0, np.float32, "fp16", "value 65520 at position 2 overflows fp16 (largest magnitude 65504)"),
        (-7e4, np.float32, "fp16", "value -70000 at position 2 overflows fp16 (largest magnitude 65504)"),
        (3.4e38, np.float32, "bf16", "value 3.4e+38 at position 2 overflows bf16 (largest magnitude 3.38953e+38)"),
        (1e300, np.float64, "fp32", "value 1e+300 at position 2 overflows fp32 (largest magnitude 3.40282e+38)"),
    ],
)
def test_overflow_is_refused_by_section_and_position(number: float, dtype: type, wire: str, sentence: str) -> None:
    array = np.array([np.inf, np.nan, number, number], dtype=dtype)
    sections = (
        Values(array, wire=wire),
        Pairs(np.arange(4), array, 4, wire=wire),
        Masked(np.ones(4, dtype=bool), array, wire=wire),
    )
    for section in sections:
        with pytest.raises(WireError) as caught:
            encode("k", 0, 0, {"w": section})
        assert str(caught.value) == f"section 'w': {sentence}"


@pytest.mark.parametrize(("dtype", "wire"), [(np.float32, "fp16"), (np.float32, "bf16"), (np.float64, "fp32")])
def test_infinity_and_nan_pass_narrowing_and_the_largest_value_does_not_overflow(dtype: type, wire: str) -> None:
    array = np.array([np.inf, -np.inf, np.nan, 65504.0, 65519.0], dtype=dtype)
    section = through(Values(array, wire=wire))
    assert isinstance(section, Values)
    assert section.array.dtype == dtype
    assert section.array[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(section.array[2])
    assert np.isfinite(section.array[3:]).all()


def test_an_empty_message() -> None:
    assert decode(encode("k", 0, -1, {})) == Message("k", 0, -1, {})


def test_overhead_of_one_values_section_is_under_64_bytes() -> None:
    data = encode("update", 499, 99, {"values": Values(np.zeros(3_000_000, dtype=np.float32))})
    assert len(data) - 12_000_000 == sizes(data)[HEADER] < 64


@pytest.mark.parametrize("density", [0.3, 0.1, 0.05, 0.01, 0.001])
def test_a_random_mask_costs_at_most_6_percent_over_its_entropy(density: float) -> None:
    mask = np.random.default_rng(0).random(1_000_000) < density
    p = mask.mean()
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * len(mask) / 8
    assert entropy < Bitmap(mask).nbytes < 1.06 * entropy


def test_gaps_of_very_different_size_and_density_are_no_worse_than_the_other_codings() -> None:
    """A dense layer before a very sparse one: the Rice parameter follows."""
    rng = np.random.default_rng(0)
    mask = np.concatenate([rng.random(10_000) < 0.4, rng.random(990_000) < 0.005])
    apart = Bitmap(mask[:10_000]).nbytes + Bitmap(mask[10_000:]).nbytes
    assert Bitmap(mask).nbytes < 1.02 * apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_finite_finds_one_bad_value_anywhere(dtype: torch.dtype, bad: float) -> None:
    for position in range(37):
        numbers = torch.full((37,), torch.finfo(dtype).max, dtype=dtype)
        numbers[::2] *= -1
        assert finite(numbers)
        numbers[position] = bad
        assert not finite(numbers)
    assert finite(torch.zeros(0, dtype=dtype))
    assert finite(torch.tensor([1 << 62]))
