"""The index arithmetic of the CUDA kernels, compiled for the host and looped over the whole grid."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}

# (rows, row_len, density): why this shape
SHAPES = {
    "one tile, aligned rows": (8, 64, 0.3),
    "rows that are no multiple of 16 bytes": (5, 27, 0.4),
    "several tiles and an odd tail": (3, 2 * 2048 + 37, 0.05),
    "several tiles, aligned": (4, 4608, 0.05),
    "a tile that ends with the row": (2, 1024, 0.2),
    "one element": (1, 1, 1.0),
    "primes": (13, 577, 0.1),
    "full": (3, 96, 1.0),
    "nothing active": (4, 100, 0.0),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no host C++ compiler")
    out = tmp_path_factory.mktemp("host") / "unpack_on_host.so"
    source = Path(__file__).with_name("unpack_on_host.cpp")
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    include = ["-I", str(ROOT / "csrc" / "cuda")]
    subprocess.run([compiler, *flags, *include, "-shared", "-fPIC", str(source), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def problem(rows: int, row_len: int, density: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A random mask (bool [rows, row_len]; its middle row empty where there are several), indptr and cols."""
    generator = torch.Generator().manual_seed(rows * 7919 + row_len)
    mask = torch.rand(rows, row_len, generator=generator) < density
    if rows > 2 and density < 1:
        mask[rows // 2] = False
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[1:] = mask.sum(1).cumsum(0)
    return mask, indptr, mask.nonzero()[:, 1].int()


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("stride", [1, 37, 127])
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack(library: ctypes.CDLL, shape: str, dtype: torch.dtype, stride: int) -> None:
    rows, row_len, density = SHAPES[shape]
    mask, indptr, cols = problem(rows, row_len, density, dtype)
    values = torch.randn(cols.numel(), generator=torch.Generator().manual_seed(1)).to(dtype)
    # One row of poison on either side: a kernel that writes beyond the weight is seen.
    padded = torch.full((rows + 2, row_len), torch.nan, dtype=dtype)
    start = ctypes.c_void_p(padded[1:].data_ptr())
    run = getattr(library, f"unpack_{BITS[dtype]}")
    run(pointer(values), pointer(indptr), pointer(cols), 1, rows, row_len, stride, start)
    expected = torch.zeros(rows, row_len, dtype=dtype).masked_scatter(mask, values)
    assert torch.equal(padded[1:-1], expected)
    assert padded[0].isnan().all()
    assert padded[-1].isnan().all()


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gather(library: ctypes.CDLL, shape: str, dtype: torch.dtype) -> None:
    rows, row_len, density = SHAPES[shape]
    mask, indptr, cols = problem(rows, row_len, density, dtype)
    dense = torch.randn(rows, row_len, generator=torch.Generator().manual_seed(2)).to(dtype)
    values = torch.full((cols.numel(),), torch.nan, dtype=dtype)
    run = getattr(library, f"gather_{BITS[dtype]}")
    run(pointer(dense), pointer(indptr), pointer(cols), 1, rows, row_len, pointer(values))
    assert torch.equal(values, dense[mask])


@pytest.mark.parametrize("V", [2, 8])
def test_rows_that_share_their_columns(library: ctypes.CDLL, V: int) -> None:
    """One list of columns for V rows; the values are those of the rows one after the other."""
    mask, indptr, cols = problem(5, 577, 0.1, torch.float32)
    full = mask.repeat_interleave(V, 0)
    dense = torch.randn(full.shape, generator=torch.Generator().manual_seed(2)) * full
    values, back = torch.full((V * cols.numel(),), torch.nan), torch.full(full.shape, torch.nan)
    library.gather_32(pointer(dense), pointer(indptr), pointer(cols), V, 5 * V, 577, pointer(values))
    assert torch.equal(values, dense[full])
    library.unpack_32(pointer(values), pointer(indptr), pointer(cols), V, 5 * V, 577, 37, pointer(back))
    assert torch.equal(back, dense)


def test_many_empty_rows_before_the_first_and_after_the_last_nonzero(library: ctypes.CDLL) -> None:
    """row_of must step over runs of empty rows: 1 nonzero in row 6 of 11."""
    indptr = torch.tensor([0] * 7 + [1] * 5, dtype=torch.int32)
    cols = torch.tensor([2], dtype=torch.int32)
    dense = torch.arange(33.0).reshape(11, 3)
    values = torch.full((1,), torch.nan)
    library.gather_32(pointer(dense), pointer(indptr), pointer(cols), 1, 11, 3, pointer(values))
    assert values.item() == 20.0


def test_columns_out_of_range_are_never_written(library: ctypes.CDLL) -> None:
    """A broken topology may spoil values, never memory: columns 8 and -1 of a row of 8 are left out."""
    indptr = torch.tensor([0, 3], dtype=torch.int32)
    cols = torch.tensor([-1, 3, 8], dtype=torch.int32)
    values = torch.tensor([5.0, 6.0, 7.0])
    padded = torch.full((3, 8), torch.nan)
    start = ctypes.c_void_p(padded[1:].data_ptr())
    library.unpack_32(pointer(values), pointer(indptr), pointer(cols), 1, 1, 8, 1, start)
    assert padded[1].tolist() == [0, 0, 0, 6, 0, 0, 0, 0]
    assert padded[0].isnan().all()
    assert padded[2].isnan().all()
