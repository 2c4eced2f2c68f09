from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from blocked_cases import BATCHES, close, plain, poisoned, random
from op_cases import DTYPES
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.blocked_pool import (
    Windows,
    adaptive_windows,
    reference_average,
    reference_max,
    sliding_windows,
)

RAW = torch.ops.fedsparse
SIZE = (7, 9)
ADAPTIVE = {
    "one pixel": (1, 1),
    "overlapping windows": (3, 4),
    "as it is": SIZE,
    "more pixels than there are": (8, 10),
}
SLIDING = {
    "halves": ((2, 2), (2, 2), (0, 0)),
    "padded": ((3, 3), (2, 2), (1, 1)),
    "rectangular": ((2, 3), (1, 2), (1, 0)),
    "gaps": ((1, 1), (3, 2), (0, 0)),
    "overlapping": ((3, 3), (1, 1), (1, 1)),
}

Pool = Callable[[Tensor], Tensor]


def pools() -> dict[str, tuple[Pool, Pool]]:
    """By reason: (torch's, ours)."""
    found: dict[str, tuple[Pool, Pool]] = {}
    for reason, out in ADAPTIVE.items():
        windows = adaptive_windows(SIZE, out)
        found[f"adaptive, {reason}"] = (
            lambda x, out=out: F.adaptive_avg_pool2d(x, out),
            lambda x, w=windows: ops.blocked_average(x, w),
        )
    for reason, (kernel, stride, padding) in SLIDING.items():
        windows = sliding_windows(SIZE, kernel, stride, padding)
        found[f"max, {reason}"] = (
            lambda x, a=(kernel, stride, padding): F.max_pool2d(x, *a),
            lambda x, w=windows: ops.blocked_max(x, w),
        )
        found[f"average, {reason}"] = (
            lambda x, a=(kernel, stride, padding): F.avg_pool2d(x, *a),
            lambda x, w=windows, k=kernel: ops.blocked_average(x, w, k[0] * k[1]),
        )
        found[f"average of pixels, {reason}"] = (
            lambda x, a=(kernel, stride, padding): F.avg_pool2d(x, *a, count_include_pad=False),
            lambda x, w=windows: ops.blocked_average(x, w),
        )
    return found


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reason", pools())
def test_equals_torch(reason: str, dtype: torch.dtype, batch: int, isa: str) -> None:
    by_torch, by_blocks = pools()[reason]
    # Values that float32 holds, so that the same one is the largest in both.
    x = random(batch, 3, *SIZE).float().double().requires_grad_()
    y = by_torch(x)
    gy = random(*y.shape, seed=1).float().double()
    (expected,) = torch.autograd.grad(y, x, gy)
    blocks = poisoned(x.detach().to(dtype)).requires_grad_()
    z = by_blocks(blocks)
    close(plain(z.detach(), batch), y.detach(), "y")
    (gradient,) = torch.autograd.grad(z, blocks, poisoned(gy.to(dtype)))
    close(plain(gradient, batch), expected, "x")


def test_of_equal_entries_the_first_gets_the_gradient(isa: str) -> None:
    x = torch.zeros(3, 2, 4, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    blocks = poisoned(x).requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.blocked_max(blocks, sliding_windows((4, 4), (2, 2), (2, 2), (0, 0))).sum(), blocks
    )
    assert torch.equal(plain(gradient, 3), expected)


@pytest.mark.parametrize("place", range(4))
def test_a_nan_is_the_maximum(place: int, isa: str) -> None:
    x = torch.ones(2, 1, 2, 2)
    x.view(2, 4)[0, place] = float("nan")
    y = ops.blocked_max(poisoned(x), sliding_windows((2, 2), (2, 2), (2, 2), (0, 0)))
    assert plain(y, 2).flatten().isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_and_references(dtype: torch.dtype) -> None:
    x = ops.to_blocked(random(3, 2, *SIZE, dtype=dtype))
    windows = sliding_windows(SIZE, (3, 3), (2, 2), (1, 1))
    torch.library.opcheck(RAW.blocked_max, (x, *windows))
    torch.library.opcheck(RAW.blocked_average, (x, *windows, 0.0))
    y, picked = RAW.blocked_max(x, *windows)
    assert picked.dtype == torch.uint8
    torch.library.opcheck(RAW.blocked_max_backward, (y, picked, SIZE, *windows))
    torch.library.opcheck(RAW.blocked_average_backward, (y, SIZE, *windows, 9.0))
    assert torch.equal(y, reference_max(x, windows))
    torch.testing.assert_close(RAW.blocked_average(x, *windows, 9.0), reference_average(x, windows, 9.0))


X = torch.zeros(1, 2, 3, 3, 16)
WHOLE = Windows((0,), (3,), (0,), (3,))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.blocked_max(X, Windows((0,), (16,), (0,), (17,))), ValueError, "at most 256 pixels"),
        (lambda: ops.blocked_average(X[0], WHOLE), ValueError, r"x must be \[blocks"),
        (lambda: RAW.blocked_max(X, [0], [4], [0], [3]), RuntimeError, "inside 0 to 3"),
        (lambda: RAW.blocked_max(X, [0], [0], [0], [3]), RuntimeError, "hold a pixel"),
        (lambda: RAW.blocked_average(X, [0, 1], [3], [0], [3], 0.0), RuntimeError, "as many ends"),
        (lambda: RAW.blocked_average_backward(X, (3, 3), *WHOLE, 0.0), RuntimeError, "one pixel for each window"),
        (lambda: RAW.blocked_max_backward(X, X, (3, 3), *WHOLE), RuntimeError, "picked must be uint8"),
    ],
)
def test_bad_operands_get_one_sentence(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
