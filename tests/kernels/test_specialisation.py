"""A Triton kernel is compiled once for a geometry and dtype, whatever the sizes: masks and batches change in a run."""

import inspect
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.gpu.kernel_list import kernels

KERNELS = {listed.compile.args[1].__name__: listed for listed in kernels()}
# Of the spmm family the batch size decides how wide loads are.
ALIGNED_BY_SIZE = ("csr_product_kernel", "csr_sample_kernel")


def specialisation(kernel: Any, signature: dict[str, str], constants: dict[str, Any], size: int) -> list[Any]:
    """What the compiled code is told apart by, for arguments of those types and every size equal to `size`."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(inspect.signature(kernel.fn), kernel.params, backend)
    tensor = torch.zeros(64)
    of_kind = {"i32": size, "fp32": 0.5}
    arguments = {name: of_kind.get(kind, tensor) for name, kind in signature.items()}
    return bind(**arguments, **constants)[1]


@pytest.mark.parametrize("name", sorted(set(KERNELS) - set(ALIGNED_BY_SIZE)))
def test_no_size_costs_a_compile(name: str) -> None:
    _, kernel, signature, constants, _ = KERNELS[name].compile.args
    found = [specialisation(kernel, signature, constants, size) for size in (1, 15, 16, 1 << 20)]
    assert all(each == found[0] for each in found)


def test_the_check_sees_a_size_that_costs_one() -> None:
    _, kernel, signature, constants, _ = KERNELS["csr_product_kernel"].compile.args
    assert specialisation(kernel, signature, constants, 15) != specialisation(kernel, signature, constants, 16)
