import pytest
import torch
from op_cases import DTYPES, LINEARS, Linear, agree, linear_operands, output_and_gradients, parametrize
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.index import Index
from fedsparse.topology import Topology


def run(case: Linear, backend: str, dtype: torch.dtype) -> list[Tensor]:
    topology, *operands = linear_operands(case, dtype)
    with ops.use_backend(backend):
        return output_and_gradients(lambda v, x, b: ops.spmm(v, topology, x, b), *operands)


@parametrize(LINEARS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_matches_the_reference(case: Linear, dtype: torch.dtype, isa: str) -> None:
    agree(run(case, "cpu", dtype), run(case, "reference", torch.float64))


@parametrize(LINEARS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_matches_the_reference(case: Linear, dtype: torch.dtype) -> None:
    agree(run(case, "dense", dtype), run(case, "reference", torch.float64))


@parametrize(LINEARS)
def test_reference_is_a_matrix_product(case: Linear) -> None:
    topology, values, x, bias = linear_operands(case, torch.float64)
    by_hand = output_and_gradients(lambda v, x, b: x @ topology.unpack(v).T + b, values, x, bias)
    agree(run(case, "reference", torch.float64), by_hand)


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
def test_the_three_products_stand_alone(backend: str) -> None:
    topology, values, x, _ = linear_operands(LINEARS["primes"], torch.float64)
    gy = torch.randn(3, 7, dtype=torch.float64)
    weight = topology.unpack(values)
    with ops.use_backend(backend):
        torch.testing.assert_close(ops.spmm_t(values, topology, gy), gy @ weight)
        torch.testing.assert_close(ops.sddmm(topology, gy, x), topology.pack(gy.T @ x))


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
def test_no_samples(backend: str) -> None:
    y, dvalues, dx, _ = run(Linear(B=0), backend, torch.float32)
    assert y.shape == (0, 7)
    assert dx.shape == (0, 11)
    assert not dvalues.any()


@pytest.mark.parametrize(("N", "C"), [(0, 3), (4, 0)])
def test_no_rows_or_no_columns(N: int, C: int) -> None:
    topology, values, x, bias = linear_operands(Linear(N=N, C=C), torch.float32)
    assert torch.equal(ops.spmm(values, topology, x, bias), bias.expand(3, N))


@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_gradients_of_gradients(backend: str) -> None:
    topology, *operands = linear_operands(LINEARS["primes"], torch.float64)
    operands = [x.requires_grad_() for x in operands]
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(lambda v, x, b: ops.spmm(v, topology, x, b), operands)
        assert torch.autograd.gradgradcheck(lambda v, x, b: ops.spmm(v, topology, x, b), operands)


def test_equal_bits_for_any_number_of_threads(isa: str) -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(LINEARS["four blocks"], "cpu", torch.float32))
    finally:
        torch.set_num_threads(before)
    for several in zip(*found):
        assert all(torch.equal(several[0], other) for other in several[1:])


@parametrize({reason: LINEARS[reason] for reason in ("primes", "strips of 4", "strips both ways", "dense")})
def test_equal_bits_however_the_indices_are_kept(case: Linear) -> None:
    topology, *operands = linear_operands(case, torch.float32)
    found = []
    for kept in (topology, topology.with_transpose(), topology.in_memory("compact")):
        with ops.use_backend("cpu"):
            found.append(output_and_gradients(lambda v, x, b, t=kept: ops.spmm(v, t, x, b), *operands))
    for several in zip(*found):
        assert all(torch.equal(several[0], other) for other in several[1:])


T, V, X, B = linear_operands(LINEARS["primes"], torch.float32)
GY = torch.ones(3, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.spmm(V, T, X[0]), "x must have 2 dimensions"),
        (lambda: ops.spmm(V, T, X[:, 1:]), "x must have 11 columns"),
        (lambda: ops.spmm(V.double(), T, X), "values must have the floating dtype"),
        (lambda: ops.spmm(V[1:], T, X), "one for each active weight"),
        (lambda: ops.spmm(V, T, X, B[1:]), "bias must have 7 entries"),
        (lambda: ops.spmm(V, Topology.from_mask(torch.ones(7, 11, 1, 1) > 0), X), "topology must have shape"),
        (lambda: ops.spmm(V, T, X.to("meta")), "topology is on cpu"),
        (lambda: ops.spmm_t(V, T, GY[:, 1:]), "gy must have 7 columns"),
        (lambda: ops.sddmm(T, GY[1:], X), "x has batch 3, gy has 2"),
        (lambda: ops.sddmm(T, GY, X[:, 1:]), "x must have 11 columns"),
    ],
)
def test_bad_operands_get_one_sentence(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


RAW = torch.ops.fedsparse
KEPT = Index.of(T.with_transpose())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RAW.spmm(V, T.indptr, T.cols + 11, 1, X, None), "cols holds an index outside 0 to 10"),
        (lambda: RAW.spmm(V, T.indptr[:0], T.cols, 1, X, None), "indptr must have at least one entry"),
        (lambda: RAW.spmm(V, T.indptr, T.cols, 1, X, B.double()), "bias must have the dtype"),
        (lambda: RAW.spmm_t(V, *KEPT._replace(t_perm=KEPT.t_perm[1:]), GY), "t_perm must have"),
        (lambda: RAW.spmm_t(V, *KEPT._replace(t_perm=KEPT.t_perm - 1), GY), "t_perm holds an index outside"),
        (lambda: RAW.sddmm(T.indptr, T.cols, 1, GY[:, 1:], X), "gy must have shape"),
    ],
)
def test_raw_ops_check_what_they_read(call, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()
