import pytest
import torch
from op_cases import CONVS, DTYPES, Conv, OpLog, agree, conv_operands, output_and_gradients, parametrize
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.index import Index


def run(case: Conv, backend: str, dtype: torch.dtype) -> list[Tensor]:
    topology, *operands = conv_operands(case, dtype)
    with ops.use_backend(backend):
        return output_and_gradients(lambda v, x, b: ops.conv2d(v, topology, x, b, **case.geometry), *operands)


@pytest.fixture(scope="module")
def expected() -> dict[Conv, list[Tensor]]:
    return {}


def oracle(case: Conv, expected: dict[Conv, list[Tensor]]) -> list[Tensor]:
    if case not in expected:
        expected[case] = run(case, "reference", torch.float64)
    return expected[case]


@parametrize(CONVS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_matches_the_reference(case: Conv, dtype: torch.dtype, isa: str, expected: dict) -> None:
    agree(run(case, "cpu", dtype), oracle(case, expected))


@parametrize(CONVS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_matches_the_reference(case: Conv, dtype: torch.dtype, expected: dict) -> None:
    agree(run(case, "dense", dtype), oracle(case, expected))


@parametrize(CONVS)
def test_reference_is_torch_convolution(case: Conv) -> None:
    topology, values, x, bias = conv_operands(case, torch.float64)

    def by_torch(v: Tensor, x: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, topology.unpack(v), b, **case.geometry)

    agree(run(case, "reference", torch.float64), output_and_gradients(by_torch, values, x, bias))


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
@parametrize({reason: CONVS[reason] for reason in ("primes", "stride 2", "nothing active", "dilation and stride")})
def test_the_three_products_stand_alone(case: Conv, backend: str) -> None:
    """conv2d_input and conv2d_weight as public ops give the gradients of conv2d."""
    topology, values, x, _ = conv_operands(case, torch.float64)
    with ops.use_backend(backend):
        y, dvalues, dx, _ = run(case, backend, torch.float64)
        gy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().reshape(y.shape)
        torch.testing.assert_close(ops.conv2d_input(values, topology, gy, (case.H, case.W), **case.geometry), dx)
        torch.testing.assert_close(ops.conv2d_weight(topology, gy, x, **case.geometry), dvalues)


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
def test_no_images(backend: str) -> None:
    y, dvalues, dx, dbias = run(Conv(B=0), backend, torch.float32)
    assert y.shape == (0, 5, 9, 11)
    assert dx.shape == (0, 3, 9, 11)
    assert not dvalues.any()
    assert not dbias.any()


@pytest.mark.parametrize(("N", "C"), [(0, 3), (4, 0)])
def test_no_rows_or_no_channels(N: int, C: int) -> None:
    topology, values, x, bias = conv_operands(Conv(N=N, C=C), torch.float32)
    y = ops.conv2d(values, topology, x, bias, padding=1)
    assert torch.equal(y, bias[:, None, None].expand(3, N, 9, 11))


def test_operands_need_not_be_contiguous() -> None:
    case = CONVS["primes"]
    topology, values, x, bias = conv_operands(case, torch.float32)
    strided = torch.stack((values, values), 1)[:, 0]
    with ops.use_backend("cpu"):
        y = ops.conv2d(strided, topology, x.to(memory_format=torch.channels_last), bias, **case.geometry)
        assert torch.equal(y, ops.conv2d(values, topology, x, bias, **case.geometry))


def test_only_the_wanted_gradients_are_computed() -> None:
    topology, values, x, bias = conv_operands(CONVS["primes"], torch.float32)
    for wanted, ran in (((1, 0, 0), {"conv2d_weight"}), ((0, 1, 0), {"conv2d_input"}), ((0, 0, 1), set())):
        operands = [t.detach().requires_grad_(bool(w)) for t, w in zip((values, x, bias), wanted)]
        with ops.use_backend("cpu"):
            y = ops.conv2d(operands[0], topology, operands[1], operands[2], padding=1)
        with OpLog() as log:
            y.sum().backward()
        assert log.names & {"conv2d", "conv2d_input", "conv2d_weight"} == ran


@pytest.mark.parametrize("backend", ["cpu", "dense"])
@parametrize({"plain": Conv(N=3, C=2, B=2, H=4, W=5), "strided": Conv(N=3, C=2, B=2, H=5, W=4, stride=(2, 2))})
def test_gradients_of_gradients(case: Conv, backend: str) -> None:
    topology, *operands = conv_operands(case, torch.float64)
    operands = [x.requires_grad_() for x in operands]

    def apply(v: Tensor, x: Tensor, b: Tensor) -> Tensor:
        return ops.conv2d(v, topology, x, b, **case.geometry)

    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(apply, operands)
        assert torch.autograd.gradgradcheck(apply, operands)


def test_equal_bits_for_any_number_of_threads(isa: str) -> None:
    case = Conv(N=37, C=19, B=33, H=14, W=9, density=0.3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append(run(case, "cpu", torch.float32))
    finally:
        torch.set_num_threads(before)
    for name, *several in zip(("y", "values", "x", "bias"), *found):
        assert all(torch.equal(several[0], other) for other in several[1:]), name


def test_bias_may_be_absent() -> None:
    topology, values, x, bias = conv_operands(CONVS["primes"], torch.float32)
    y = ops.conv2d(values, topology, x, padding=1)
    torch.testing.assert_close(y + bias[:, None, None], ops.conv2d(values, topology, x, bias, padding=1))


@parametrize(
    {
        reason: CONVS[reason]
        for reason in ("primes", "stride 2", "dilation and stride", "strips of 4", "strips, stride 2", "dense")
    }
)
def test_equal_bits_however_the_indices_are_kept(case: Conv) -> None:
    topology, *operands = conv_operands(case, torch.float32)
    found = []
    for kept in (topology, topology.with_transpose(), topology.in_memory("compact")):
        with ops.use_backend("cpu"):
            found.append(
                output_and_gradients(lambda v, x, b, t=kept: ops.conv2d(v, t, x, b, **case.geometry), *operands)
            )
    for several in zip(*found):
        assert all(torch.equal(several[0], other) for other in several[1:])


T, V, X, B = conv_operands(CONVS["primes"], torch.float32)
Y = ops.conv2d(V, T, X, padding=1)
KEPT = Index.of(T.with_transpose())
BROKEN = KEPT._replace(t_perm=KEPT.t_perm + 99)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.conv2d(V, T, X, groups=3), "groups must be 1"),
        (lambda: ops.conv2d(V, T, X[0]), "x must have 4 dimensions"),
        (lambda: ops.conv2d(V.double(), T, X), "values must have the floating dtype"),
        (lambda: ops.conv2d(V, T, X.long()), "x must have the floating dtype"),
        (lambda: ops.conv2d(V[1:], T, X), "one for each active weight"),
        (lambda: ops.conv2d(V, T, X[:, 1:]), "x must have 3 channels"),
        (lambda: ops.conv2d(V, T, X, B[1:]), "bias must have 5 entries"),
        (lambda: ops.conv2d(V, T, X.to("meta")), "topology is on cpu"),
        (lambda: ops.conv2d(V, T, X, B.to("meta")), "bias is on meta"),
        (lambda: ops.conv2d(V, T, X, stride=0), "stride must be an integer of at least 1"),
        (lambda: ops.conv2d(V, T, X, padding=(1, -1)), "padding must be"),
        (lambda: ops.conv2d(V, T, X, dilation=(1, 1, 1)), "dilation must be"),
        (lambda: ops.conv2d(V, T, X, dilation=9), "exceeds the padded input"),
        (lambda: ops.conv2d(V, ops_linear_topology(), X), "topology must have shape"),
        (lambda: ops.conv2d_input(V, T, Y, (9, 12), padding=1), "gy must have"),
        (lambda: ops.conv2d_input(V, T, Y[:, 1:], (9, 11), padding=1), "gy must have 5 channels"),
        (lambda: ops.conv2d_weight(T, Y[1:], X, padding=1), "x has batch 3, gy has 2"),
        (lambda: ops.conv2d_weight(T, Y, X), "gy must have"),
    ],
)
def test_bad_operands_get_one_sentence(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def ops_linear_topology():
    return type(T).from_mask(torch.ones(5, 3, dtype=torch.bool))


RAW = torch.ops.fedsparse
ONE = [1, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: RAW.conv2d(V, T.indptr, T.cols + 99, 1, X, None, [3, 3], ONE, ONE, ONE),
            "cols holds an index outside",
        ),
        (
            lambda: RAW.conv2d(V, T.indptr, T.cols - 99, 1, X, None, [3, 3], ONE, ONE, ONE),
            "cols holds an index outside",
        ),
        (lambda: RAW.conv2d(V, T.indptr.flip(0), T.cols, 1, X, None, [3, 3], ONE, ONE, ONE), "indptr must run from 0"),
        (lambda: RAW.conv2d(V, T.indptr.long(), T.cols, 1, X, None, [3, 3], ONE, ONE, ONE), "indptr must be int32"),
        (lambda: RAW.conv2d(V, T.indptr, T.cols, 1, X.double(), None, [3, 3], ONE, ONE, ONE), "x must have the dtype"),
        (lambda: RAW.conv2d(V.half(), T.indptr, T.cols, 1, X, None, [3, 3], ONE, ONE, ONE), "float32 or float64"),
        (lambda: RAW.conv2d(V[1:], T.indptr, T.cols, 1, X, None, [3, 3], ONE, ONE, ONE), "values must have"),
        (lambda: RAW.conv2d(V, T.indptr, T.cols, 1, X, None, [3, 3], [0, 1], ONE, ONE), "stride must be"),
        (lambda: RAW.conv2d(V, T.indptr, T.cols, 1, X, None, [30, 3], ONE, ONE, ONE), "the kernel spans 30 pixels"),
        (
            lambda: RAW.conv2d_input(V, *BROKEN, Y, [9, 11], [3, 3], ONE, ONE, ONE),
            "t_perm holds an index outside",
        ),
        (lambda: RAW.conv2d_weight(T.indptr, T.cols, 1, Y[:, 1:], X, [3, 3], ONE, ONE, ONE), "gy must have shape"),
    ],
)
def test_raw_ops_check_what_they_read(call, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()
