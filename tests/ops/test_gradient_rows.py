"""Rows of the gradient to the dense weight from blocked tensors, and growth by them."""

import pytest
import torch
from op_cases import CONVS, Conv, conv_operands, parametrize, peak_beyond, random_mask
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

RAW = torch.ops.fedsparse

MORE = {
    "one tile": Conv(N=8, C=4, B=16, H=4, W=4),
    "tiles and chunks of lines": Conv(N=20, C=6, B=40, H=32, W=32),
    "map that is no multiple of four": Conv(N=9, C=5, B=17, H=7, W=10),
    "no padding, one image of a block": Conv(N=4, C=4, B=17, H=10, W=10, padding=(0, 0)),
    "padding two": Conv(N=4, C=7, B=3, H=6, W=6, padding=(2, 2)),
    "map of two pixels": Conv(N=4, C=7, B=3, H=2, W=2),
}


def operands(case: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x, gy), the same in every run."""
    topology, values, x, _ = conv_operands(case, dtype)
    shape = ops.conv2d(values, topology, x, **case.geometry).shape
    return x, torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def poisoned(x: Tensor) -> Tensor:
    """x in blocks, with NaN in the lanes that have no image."""
    blocks = ops.to_blocked(x)
    lanes = torch.arange(blocks.shape[0] * blocks.shape[4]).view(-1, blocks.shape[4])
    return torch.where(lanes[:, None, None, None] < x.shape[0], blocks, torch.nan)


@parametrize(CONVS | MORE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_those_of_the_dense_gradient(case: Conv, dtype: torch.dtype, isa: str) -> None:
    """float32 errs by some 1e-6 of the largest entry, in the longest sums, of 40,960 products, by more: over 60 draws
    F(3x3, 4x4) by up to 1.8e-5 and torch's own plain sum by up to 1.2e-5. 3e-5 are allowed; a wrong index errs by 1e-2.
    """
    x, gy = operands(case, dtype)
    shape = (case.N, case.C, *case.kernel)
    expected = torch.nn.grad.conv2d_weight(x.double(), shape, gy.double(), **case.geometry).flatten(1)
    geometry = [list(pair) for pair in (case.kernel, case.stride, case.padding, case.dilation)]
    for first, rows in ((0, case.N), (1, case.N - 1), (case.N // 2, 1)):
        found = RAW.blocked_gradient_rows(poisoned(gy), poisoned(x), case.B, first, rows, *geometry)
        error = (found.double() - expected[first : first + rows]).abs().max() / expected.abs().max().clamp(min=1)
        assert float(error) <= (3e-5 if dtype == torch.float32 else 1e-13)


def test_equal_bits_for_any_number_of_threads(isa: str) -> None:
    before, found = torch.get_num_threads(), []
    x, gy = (ops.to_blocked(t) for t in operands(Conv(N=37, C=19, B=33, H=14, W=9), torch.float32))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(RAW.blocked_gradient_rows(gy, x, 33, 3, 30, [3, 3], [1, 1], [1, 1], [1, 1]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("reason", ["primes", "stride 2", "dilation and stride", "one full block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growth_chooses_what_the_dense_gradient_says(reason: str, dtype: torch.dtype) -> None:
    case = CONVS[reason]
    topology, _, _, _ = conv_operands(case, dtype)
    x, gy = operands(case, dtype)
    found = ops.grow_scores(ops.to_blocked(x), ops.to_blocked(gy), topology, 7, **case.geometry, batches=case.B)
    expected = ops.grow_scores(x, gy, topology, 7, **case.geometry)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    parts = [ops.to_blocked(x[:1]), ops.to_blocked(x[1:])], [ops.to_blocked(gy[:1]), ops.to_blocked(gy[1:])]
    if case.B > 1:
        again = ops.grow_scores(*parts, topology, 7, **case.geometry, batches=[1, case.B - 1])
        assert torch.equal(again[0], expected[0])


def test_memory_is_bounded_by_a_chunk_and_a_tile() -> None:
    """A dense gradient of 512 x 512 x 3 x 3 is 9.4 MB. A tile has 96 rows, so that its 36 sums of 512 columns take
    7.1 MB; transformed lines take 5.6, two tiles 3.6, and 25,000 candidates some 3 MB."""
    topology = Topology.from_mask(random_mask((512, 512, 3, 3), 0.05))
    x, gy = torch.randn(4, 512, 4, 4, 16), torch.randn(4, 512, 4, 4, 16)
    peak = peak_beyond(lambda: ops.grow_scores(x, gy, topology, 25_000, padding=1, batches=64))
    assert peak <= 20e6


@parametrize({reason: CONVS[reason] for reason in ("primes", "stride 2")})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(case: Conv, dtype: torch.dtype) -> None:
    x, gy = (ops.to_blocked(t) for t in operands(case, dtype))
    geometry = [list(pair) for pair in (case.kernel, case.stride, case.padding, case.dilation)]
    torch.library.opcheck(RAW.blocked_gradient_rows, (gy, x, case.B, 1, 2, *geometry))


X, GY = torch.zeros(1, 3, 9, 11, 16), torch.zeros(1, 5, 9, 11, 16)
T = Topology.from_mask(torch.zeros(5, 3, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.grow_scores(X, GY, T, 1, batches=17, padding=1), ValueError, "17 images"),
        (lambda: ops.grow_scores(X[0], GY, T, 1, batches=3, padding=1), ValueError, r"x must be \[blocks"),
        (lambda: ops.grow_scores(X, GY[:, 1:], T, 1, batches=3, padding=1), ValueError, "gy must have 5 channels"),
        (lambda: ops.grow_scores(X, GY, T, 1, batches=3), RuntimeError, "gy must have shape"),
        (lambda: RAW.blocked_gradient_rows(GY, X, 3, 3, 3, *[[3, 3]] + [[1, 1]] * 3), RuntimeError, "not rows 3 to 5"),
    ],
)
def test_bad_operands_get_one_sentence(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
