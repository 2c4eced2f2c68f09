"""What the compiler says of every CUDA kernel: registers, spills, shared memory, instructions."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="its wheel carries the disassembler")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import kernel_table
from benchmarks.gpu.machine_code import Code, MissingToolError, cuda_code

MAX_REGISTERS = 128
MAX_SHARED = 48 * 1024


@pytest.fixture(scope="module", params=kernel_table.SOURCES, ids=lambda source: source.stem)
def compiled(request: pytest.FixtureRequest) -> list[Code]:
    """The kernels of one source."""
    try:
        return cuda_code(request.param)
    except MissingToolError as reason:
        pytest.skip(str(reason))


def test_no_kernel_spills(compiled: list[Code]) -> None:
    assert compiled, "the compiler's log names no kernel"
    for code in compiled:
        assert not kernel_table.problems(code, False), code.name
        assert code.registers <= MAX_REGISTERS, f"{code.name} takes {code.registers} registers"
        assert code.shared <= MAX_SHARED, f"{code.name} takes {code.shared} bytes of shared memory"


def test_unpack_stores_16_bytes_at_a_time(compiled: list[Code]) -> None:
    """Each unpack kernel has a 16-byte store to global memory."""
    unpacks = [code for code in compiled if "unpack_kernel" in code.name]
    assert len(unpacks) == 3
    assert all(code.instructions["st.16B"] for code in unpacks)
