import pytest
import torch
import torch.nn.functional as F
from blocked_cases import BATCHES, close, plain, poisoned, random
from op_cases import DTYPES
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.blocked_norm import reference_norm

RAW = torch.ops.fedsparse
KINDS = ["batch norm", "batch norm, eval", "group norm"]
EPS = 1e-5


def operands(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(x, residual, weight, bias, gy); x has a mean of many deviations, as a first layer's may."""
    x, residual, gy = (random(batch, 4, 5, 7, seed=s) for s in range(3))
    weight, bias = random(4, seed=3), random(4, seed=4)
    return tuple(t.to(dtype) for t in (x + 10 * weight[:, None, None], residual, weight, bias, gy))


def by_torch(kind: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, relu: bool):
    if kind == "group norm":
        y = F.group_norm(x, 2, weight, bias, EPS)
    else:
        y = F.batch_norm(x, given(x.dtype, 0), given(x.dtype, 1), weight, bias, kind == "batch norm", 0.0, EPS)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def given(dtype: torch.dtype, which: int) -> Tensor:
    """Running mean and variance for eval mode."""
    return (random(4, seed=5) if which == 0 else random(4, seed=6).square() + 0.5).to(dtype)


def by_blocks(kind: str, batch: int, x: Tensor, residual, weight, bias, relu: bool) -> Tensor:
    if kind == "group norm":
        mean, variance = ops.group_moments(x, 2)
        return ops.group_norm(x, weight, bias, mean, (variance + EPS).rsqrt(), batch, residual=residual, relu=relu)
    training = kind == "batch norm"
    if training:
        statistics = ops.batch_statistics(x, batch, weight, bias, None, None, 0.1, EPS)
    else:
        rstd = (given(x.dtype, 1) + EPS).rsqrt()
        statistics = ops.given_statistics(weight, bias, given(x.dtype, 0), rstd)
    return ops.batch_norm(x, weight, bias, statistics, batch, training=training, residual=residual, relu=relu)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_torchs_and_so_are_the_running_ones(dtype: torch.dtype, batch: int, isa: str) -> None:
    x, _, weight, bias, _ = operands(batch, torch.float64)
    expected = given(x.dtype, 0), given(x.dtype, 1)
    F.batch_norm(x, *expected, weight, bias, True, 0.3, EPS)
    running = [given(torch.float64, i).to(dtype) for i in (0, 1)]
    affine = weight.to(dtype), bias.to(dtype)
    found = ops.batch_statistics(poisoned(x.to(dtype)), batch, *affine, *running, 0.3, EPS)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    rstd = (variance + EPS).rsqrt()
    every = (*found, *running)
    for a, b in zip(every, (mean, rstd, weight * rstd, bias - mean * weight * rstd, *expected)):
        torch.testing.assert_close(a.double(), b, rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=2e-5)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(kind: str, with_residual: bool, relu: bool, dtype: torch.dtype, batch: int, isa: str) -> None:
    """Against torch in float64, NaN in every empty lane of x, residual and gradient.

    ReLU's gradient jumps at 0; with float32 the sign of an entry within rounding of 0 may differ, so those are moved.
    """
    exact = operands(batch, torch.float64)
    x, residual, weight, bias, gy = exact
    residual = residual if with_residual else None
    near = by_torch(kind, x, residual, weight, bias, False).abs() < 1e-4
    gy = gy.masked_fill(near, 0.0)
    wanted = [t.clone().requires_grad_() for t in (x, weight, bias, *([residual] if with_residual else []))]
    y = by_torch(kind, wanted[0], wanted[3] if with_residual else None, wanted[1], wanted[2], relu)
    expected = [y.detach(), *torch.autograd.grad(y, wanted, gy)]

    mine = [t.detach().to(dtype) for t in wanted]
    mine = [(poisoned(t) if t.dim() == 4 else t).requires_grad_() for t in mine]
    z = by_blocks(kind, batch, mine[0], mine[3] if with_residual else None, mine[1], mine[2], relu)
    gradients = torch.autograd.grad(z, mine, poisoned(gy.to(dtype)))
    for name, a, b in zip(("y", "x", "weight", "bias", "residual"), (z.detach(), *gradients), expected):
        a = plain(a, batch) if a.dim() == 5 else a
        # In float32 x itself is rounded, relative to its mean of about ten deviations.
        if dtype == torch.float32:
            assert bool(a.isfinite().all()), name
            torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-4 * float(b.abs().max()))
        else:
            close(a, b, name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_weight_and_bias(kind: str) -> None:
    x, residual, _, _, gy = operands(5, torch.float64)
    x.requires_grad_()
    y = by_torch(kind, x, residual, None, None, True)
    (expected,) = torch.autograd.grad(y, x, gy)
    blocks = poisoned(x).requires_grad_()
    z = by_blocks(kind, 5, blocks, poisoned(residual), None, None, True)
    close(plain(z.detach(), 5), y.detach())
    close(plain(torch.autograd.grad(z, blocks, poisoned(gy))[0], 5), expected)


def test_moments_are_exact_where_the_mean_is_far_from_zero(isa: str) -> None:
    """x = 1000 + {-1, 1}: variance 1. E[x^2] - m^2 in float32 would be off by 0.06 and more."""
    x = 1000 + (torch.arange(6 * 2 * 3 * 4).reshape(6, 2, 3, 4) % 2 * 2.0 - 1)
    batch = ops.batch_statistics(poisoned(x), 6, None, None, None, None, 0.1, 0.0)
    assert batch.mean.tolist() == [1000.0, 1000.0]
    assert batch.rstd.tolist() == [1.0, 1.0]
    mean, variance = ops.group_moments(poisoned(x), 1)
    assert mean.shape == variance.shape == (1, 1, 16)
    assert mean.flatten()[:2].tolist() == [1000.0, 1000.0]
    assert variance.flatten()[:2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    """As in torch: a diverged activation must not be hidden by ReLU."""
    x = torch.ones(3, 1, 2, 2)
    x[1, 0, 0, 1] = value
    y = RAW.blocked_norm(poisoned(x), torch.ones(1), torch.zeros(1), None, True)
    assert torch.equal(plain(y, 3), x) or (value != value and plain(y, 3).isnan().sum() == 1)


def test_equal_bits_for_any_number_of_threads() -> None:
    x, residual, weight, bias, gy = operands(33, torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            blocks = poisoned(x).requires_grad_()
            y = by_blocks("batch norm", 33, blocks, poisoned(residual), weight, bias, True)
            found.append((plain(y.detach(), 33), plain(torch.autograd.grad(y, blocks, poisoned(gy))[0], 33)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_nothing_but_x_statistics_and_a_fused_output_is_kept() -> None:
    x, residual, weight, bias, _ = operands(16, torch.float32)
    blocks = poisoned(x).requires_grad_()
    for rest in (None, poisoned(residual)):
        y = by_blocks("batch norm", 16, blocks, rest, weight, bias, True)
        kept = {t.data_ptr() for t in y.grad_fn.saved_tensors if t is not None and t.numel() > 4}
        assert kept == {blocks.data_ptr()} | (set() if rest is None else {y.data_ptr()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x, residual, weight, bias, gy = operands(3, dtype)
    x, residual, gy = map(ops.to_blocked, (x, residual, gy))
    running = (torch.zeros_like(weight), torch.ones_like(weight))
    torch.library.opcheck(RAW.blocked_batch_statistics, (x, 3, weight, bias, *running, 0.1, EPS))
    torch.library.opcheck(RAW.blocked_batch_statistics, (x, 3, None, None, None, None, 0.1, EPS))
    torch.library.opcheck(RAW.blocked_group_moments, (x, 2))
    torch.library.opcheck(RAW.blocked_norm, (x, weight, bias, residual, True))
    statistics = ops.batch_statistics(x, 3, weight, bias, None, None, 0.1, EPS)
    rest = (statistics.mean, statistics.rstd, weight, bias)
    torch.library.opcheck(RAW.blocked_batch_norm_backward, (gy, x, *rest, None, True, True, 3))
    torch.library.opcheck(RAW.blocked_batch_norm_backward, (gy, x, *rest, residual, True, True, 3))
    mean, variance = ops.group_moments(x, 2)
    torch.library.opcheck(
        RAW.blocked_group_norm_backward, (gy, x, mean, (variance + EPS).rsqrt(), weight, bias, None, True, 3)
    )
    torch.testing.assert_close(
        RAW.blocked_norm(x, weight, bias, residual, True), reference_norm(x, weight, bias, residual, True)
    )


X = torch.zeros(1, 4, 2, 2, 16)
C4 = torch.ones(4)
GIVEN = ops.given_statistics(None, None, C4, C4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.batch_statistics(X, 17, C4, C4, C4, C4, 0.1, 0.0), ValueError, "17 images"),
        (lambda: RAW.blocked_batch_statistics(X, 3, C4[1:], None, None, None, 0.1, 0.0), RuntimeError, "weight must"),
        (lambda: RAW.blocked_batch_statistics(X, 3, C4, None, C4[1:], C4, 0.1, 0.0), RuntimeError, "running"),
        (
            lambda: RAW.blocked_batch_statistics(X[..., :1, :1, :], 1, C4, C4, C4, C4, 0.1, 0.0),
            RuntimeError,
            "one value",
        ),
        (lambda: ops.group_moments(X, 3), ValueError, "groups must divide the 4 channels"),
        (lambda: ops.batch_norm(X, C4, C4, GIVEN, 3, training=True, residual=X[:, 1:]), ValueError, "residual"),
        (lambda: RAW.blocked_norm(X, C4[1:], C4, None, True), RuntimeError, "scale must have shape"),
        (lambda: RAW.blocked_norm(X, C4, C4.double(), None, True), RuntimeError, "shift must have the dtype"),
        (lambda: RAW.blocked_norm(X, C4, C4, X[:, 1:], True), RuntimeError, "residual must have the shape"),
        (
            lambda: RAW.blocked_batch_norm_backward(X, X, C4, C4, C4[1:], C4, None, True, True, 3),
            RuntimeError,
            "weight must have 4 entries",
        ),
        (
            lambda: RAW.blocked_batch_norm_backward(X, X, C4, C4, C4, C4, X, False, True, 3),
            RuntimeError,
            "out is for a norm with ReLU",
        ),
    ],
)
def test_bad_operands_get_one_sentence(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
