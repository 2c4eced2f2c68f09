import pytest
import torch
from blocked_cases import close, plain, poisoned
from op_cases import CONVS, DTYPES, Conv, conv_operands, output_and_gradients, parametrize
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.index import Index

RAW = torch.ops.fedsparse
MORE = {
    "several bands of rows": Conv(C=40, H=32, W=32, N=4, density=0.1),
    "several bands, stride 2": Conv(C=40, H=33, W=32, N=4, B=17, stride=(2, 2), density=0.1),
    "strips, sums in several bands": Conv(C=64, N=16, H=32, W=32, B=16, density=0.1, granularity=16),
    "strips, most channels read by none": Conv(C=24, N=32, H=9, W=8, B=17, density=0.02, granularity=16),
    "strips, most channels read by none, stride 2": Conv(
        C=24, N=32, H=9, W=8, B=17, stride=(2, 2), density=0.02, granularity=16
    ),
    "most channels read by none": Conv(C=24, N=2, H=9, W=8, B=17, density=0.02),
    "columns sorted with a gap": Conv(kernel=(1, 1), stride=(1, 3), padding=(0, 1), W=2),
}
CASES = CONVS | MORE


def run(case: Conv, dtype: torch.dtype) -> list[Tensor]:
    """[y, dvalues, dx, dbias] with NaN in the empty lanes of x and of the gradient of y."""
    topology, values, x, bias = conv_operands(case, dtype)
    blocks, values, bias = poisoned(x).requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    with ops.use_backend("cpu"):
        y = ops.blocked_conv2d(values, topology, blocks, case.B, bias, **case.geometry)
    result = plain(y.detach(), case.B)
    gy = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).sin().to(dtype).reshape(result.shape)
    dvalues, dx, dbias = torch.autograd.grad(y, (values, blocks, bias), poisoned(gy))
    return [result, dvalues, plain(dx, case.B), dbias]


@pytest.fixture(scope="module")
def expected() -> dict[Conv, list[Tensor]]:
    return {}


@parametrize(CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference(case: Conv, dtype: torch.dtype, isa: str, expected: dict) -> None:
    if case not in expected:
        topology, *operands = conv_operands(case, torch.float64)
        with ops.use_backend("reference"):
            expected[case] = output_and_gradients(
                lambda v, x, b: ops.conv2d(v, topology, x, b, **case.geometry), *operands
            )
    for name, a, b in zip(("y", "values", "x", "bias"), run(case, dtype), expected[case]):
        close(a, b, name)


@parametrize(
    {
        reason: CASES[reason]
        for reason in ("several bands of rows", "four blocks", "one full block", *(c for c in CASES if "strips" in c))
    }
)
def test_equal_bits_for_any_number_of_threads(case: Conv) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, torch.float32)
        torch.set_num_threads(3)
        for a, b in zip(alone, run(case, torch.float32)):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@parametrize({reason: CASES[reason] for reason in ("primes", "stride 2", "nothing active")})
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(case: Conv, dtype: torch.dtype) -> None:
    t, values, x, bias = conv_operands(case, dtype)
    geometry = [list(pair) for pair in (case.kernel, case.stride, case.padding, case.dilation)]
    blocks = ops.to_blocked(x)
    gy = torch.randn_like(ops.blocked_conv2d(values, t, blocks, case.B, **case.geometry))
    torch.library.opcheck(RAW.blocked_conv2d, (values, t.indptr, t.cols, t.granularity, blocks, bias, *geometry))
    size = [case.H, case.W]
    for index in (Index.of(t), Index.of(t.with_transpose())):
        torch.library.opcheck(RAW.blocked_conv2d_input, (values, *index, gy, size, *geometry))
    torch.library.opcheck(RAW.blocked_conv2d_weight, (t.indptr, t.cols, t.granularity, gy, blocks, case.B, *geometry))


def test_a_second_derivative_is_refused() -> None:
    topology, values, x, _ = conv_operands(Conv(), torch.float64)
    values.requires_grad_()
    y = ops.blocked_conv2d(values, topology, ops.to_blocked(x), 3, padding=1)
    (dvalues,) = torch.autograd.grad(y.sin().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dvalues.sum().backward()


T, V, X, B = conv_operands(Conv(), torch.float32)
BLOCKS = torch.zeros(1, 3, 9, 11, 16)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.blocked_conv2d(V, T, X, 3), ValueError, r"x must be \[blocks"),
        (lambda: ops.blocked_conv2d(V, T, BLOCKS, 17), ValueError, "17 images"),
        (lambda: ops.blocked_conv2d(V.double(), T, BLOCKS, 3), ValueError, "values must have the floating dtype"),
        (lambda: ops.blocked_conv2d(V[1:], T, BLOCKS, 3), ValueError, "one for each active weight"),
        (lambda: ops.blocked_conv2d(V, T, BLOCKS[:, 1:], 3), ValueError, "x must have 3 channels"),
        (lambda: ops.blocked_conv2d(V, T, BLOCKS, 3, dilation=9), ValueError, "exceeds the padded input"),
        (
            lambda: RAW.blocked_conv2d(V, T.indptr, T.cols + 99, 1, BLOCKS, None, [3, 3], [1, 1], [1, 1], [1, 1]),
            RuntimeError,
            "cols holds an index outside",
        ),
        (
            lambda: RAW.blocked_conv2d_weight(T.indptr, T.cols, 1, BLOCKS, BLOCKS, 3, [3, 3], [1, 1], [1, 1], [1, 1]),
            RuntimeError,
            "gy must have shape",
        ),
        (
            lambda: RAW.blocked_conv2d_weight(T.indptr, T.cols, 1, BLOCKS, BLOCKS, 20, [3, 3], [1, 1], [1, 1], [1, 1]),
            RuntimeError,
            "batch 20",
        ),
    ],
)
def test_bad_operands_get_one_sentence(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
