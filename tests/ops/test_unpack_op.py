"""unpack and gather against Topology's own pack and unpack, and as each other's gradients."""

import pytest
import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.unpack import DTYPES
from fedsparse.topology import Topology

# (dense shape, density): why this shape
SHAPES = {
    "several grains of rows": ((300, 700), 0.1),
    "3x3 kernels": ((6, 5, 3, 3), 0.3),
    "non-square kernel": ((4, 3, 1, 5), 0.5),
    "one column": ((7, 1), 0.5),
    "full": ((3, 8), 1.0),
    "one nonzero": ((5, 9), 0.0),
}


def topology(name: str) -> Topology:
    shape, density = SHAPES[name]
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < density
    if density < 1:
        mask[2] = False
    mask.reshape(-1)[-1] = True
    return Topology.from_mask(mask)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_against_topology(name: str, dtype: torch.dtype, backend: str) -> None:
    t = topology(name)
    values, dense = random(t.nnz, dtype=dtype), random(*t.shape, dtype=dtype, seed=1)
    with ops.use_backend(backend):
        assert torch.equal(ops.unpack(values, t), t.unpack(values))
        assert torch.equal(ops.gather(dense, t), t.pack(dense))


def test_operands_of_any_layout() -> None:
    t = topology("3x3 kernels")
    dense = random(*t.shape).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.gather(dense, t), t.pack(dense))
    values = random(t.nnz, 2)[:, 0]
    assert torch.equal(ops.unpack(values, t), t.unpack(values))


def test_derivatives_of_second_order() -> None:
    t = topology("3x3 kernels")
    values = random(t.nnz, dtype=torch.float64).requires_grad_()
    dense = random(*t.shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.unpack(v, t), values)
    assert torch.autograd.gradcheck(lambda w: ops.gather(w, t), dense)
    assert torch.autograd.gradgradcheck(lambda v: ops.unpack(v, t).square(), values)
    assert torch.autograd.gradgradcheck(lambda w: ops.gather(w, t).square(), dense)


@pytest.mark.parametrize("name", SHAPES)
def test_opcheck(name: str) -> None:
    t = topology(name)
    dense = random(*t.shape).flatten(1)
    for op, arguments in (
        (torch.ops.fedsparse.unpack.default, (random(t.nnz), t.indptr, t.cols, t.granularity, dense.shape[1])),
        (torch.ops.fedsparse.gather.default, (dense, t.indptr, t.cols, t.granularity)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_wrong_operands_are_named() -> None:
    t = topology("3x3 kernels")
    with pytest.raises(ValueError, match=r"unpack: values must have shape \(\d+,\), not \(3,\)"):
        ops.unpack(torch.zeros(3), t)
    with pytest.raises(ValueError, match="gather: dense must have shape"):
        ops.gather(torch.zeros(6, 5), t)
    with pytest.raises(ValueError, match="unpack: the dtype must be one of float16, bfloat16"):
        ops.unpack(torch.zeros(t.nnz, dtype=torch.int32), t)
    with (
        pytest.raises(ValueError, match="needs tensors on cuda"),
        ops.use_backend("triton"),
    ):
        ops.unpack(torch.zeros(t.nnz), t)


def test_the_compiled_kernel_checks_what_it_is_given() -> None:
    t = topology("3x3 kernels")
    with pytest.raises(RuntimeError, match="unpack: indptr and cols must be int32"):
        torch.ops.fedsparse.unpack(torch.zeros(t.nnz), t.indptr.long(), t.cols, 1, 45)
    with pytest.raises(RuntimeError, match="unpack: row_len must be between"):
        torch.ops.fedsparse.unpack(torch.zeros(t.nnz), t.indptr, t.cols, 1, 0)
    with pytest.raises(RuntimeError, match=r"gather: dense must be \[N, row_len\]"):
        torch.ops.fedsparse.gather(torch.zeros(3, 45), t.indptr, t.cols, 1)


def test_compile_in_one_graph() -> None:
    t = topology("3x3 kernels")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def square(values: Tensor) -> Tensor:
        return ops.unpack(values, t).square().sum()

    values = random(t.nnz).requires_grad_()
    square(values).backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, 2 * values.detach())
