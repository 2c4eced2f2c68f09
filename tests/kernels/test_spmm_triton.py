"""The Triton kernels of spmm without a GPU: numbers from the interpreter, resources from a compile."""

from typing import Any

import pytest

pytest.importorskip("triton")

import triton.language as tl
from fedsparse.kernels import spmm
from fedsparse.kernels.addresses import search_steps
from interpreted import run
from spmm_interpreted import RUNS

from benchmarks.gpu.machine_code import Code, MissingToolError, triton_code

# Half types carry the rounding of the result: 2^-11 and 2^-8, a third of it in the mean.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 6e-3}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return run("spmm_interpreted.py")


@pytest.mark.parametrize(("shape", "dtype"), RUNS)
def test_against_float64(interpreted: dict[str, dict[str, float]], shape: str, dtype: str) -> None:
    for operation, error in interpreted[f"{shape}/{dtype}"].items():
        assert error <= TOLERANCE[dtype], f"{operation}: {error:.2e}"


@pytest.mark.parametrize(("large", "dtype"), [(True, "fp32"), (True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("operation", ["spmm", "spmm_t", "sddmm"])
def test_vector_loads_where_the_batch_is_a_multiple_of_16(operation: str, large: bool, dtype: str) -> None:
    """Of the activations; what else is to be said of these kernels says test_kernel_table."""
    try:
        compiled = compile_spmm(operation, 64 if large else 16, dtype)
    except MissingToolError as reason:
        pytest.skip(str(reason))
    assert "ld.global.v" in compiled.ptx


def compile_spmm(operation: str, batch: int, dtype: str) -> Code:
    acc = tl.float64 if dtype == "fp64" else tl.float32
    pointer, count = f"*{dtype}", "i32"
    if operation == "sddmm":
        tile = spmm.tile("sample", batch)
        signature = {"g_t": pointer, "x_t": pointer, "indptr": "*i32", "cols": "*i32", "dvalues": pointer}
        constants: dict[str, Any] = {"STEPS": search_steps(512)}
        kernel = spmm.csr_sample_kernel
        signature |= {"batch": count, "rows": count, "nnz": count}
    else:
        tile = spmm.tile("product", batch)
        signature = {"values": pointer, "indptr": "*i32", "cols": "*i32", "perm": "*i32", "x_t": pointer}
        signature |= {"y": pointer, "batch": count, "rows": count}
        constants = {"HAS_PERM": operation == "spmm_t"}
        kernel = spmm.csr_product_kernel
    constants |= {"ACC": acc, "NONZEROS": tile.nonzeros, "BATCH": tile.batch}
    return triton_code(operation, kernel, signature, constants, tile.warps, aligned_sizes=True, disassembled=False)


@pytest.mark.parametrize(("rows", "steps"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (512, 9), (513, 10)])
def test_search_steps(rows: int, steps: int) -> None:
    """2 ** steps must reach `rows`, and one step fewer must not."""
    assert search_steps(rows) == steps
    assert 2**steps >= rows > 2**steps // 2
