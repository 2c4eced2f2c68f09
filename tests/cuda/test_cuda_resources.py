"""What the compiler says of every CUDA kernel: registers, spills, shared memory, instructions."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
MAX_REGISTERS = 128
MAX_SHARED = 48 * 1024


@dataclass(frozen=True)
class Kernel:
    name: str
    stack: int
    spills: int
    registers: int
    shared: int


def nvcc() -> str:
    found = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")
    if not Path(found).exists():
        pytest.skip("no nvcc")
    return found


def parse(log: str) -> list[Kernel]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?[^\n]*",
        re.S,
    )
    kernels = []
    for block in re.split(r"(?=ptxas info +: Compiling entry)", log):
        if found := pattern.search(block):
            name, stack, stores, loads, registers, shared = found.groups()
            kernels.append(Kernel(name, int(stack), int(stores) + int(loads), int(registers), int(shared or 0)))
    return kernels


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(cubin, the compiler's log) of one source."""
    cubin = tmp_path_factory.mktemp("cubin") / f"{request.param.stem}.cubin"
    include = Path(torch.__file__).parent / "include"
    command = [nvcc(), "-std=c++17", "-O3", "-gencode=arch=compute_90,code=sm_90", "-Xptxas", "-v", "-cubin"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-I", str(include)]
    done = subprocess.run([*command, str(request.param), "-o", str(cubin)], check=True, capture_output=True, text=True)
    return cubin, done.stdout + done.stderr


def test_no_kernel_spills(compiled: tuple[Path, str]) -> None:
    kernels = parse(compiled[1])
    assert kernels, "the compiler's log names no kernel"
    for kernel in kernels:
        assert kernel.stack == 0, f"{kernel.name} keeps {kernel.stack} bytes in local memory"
        assert kernel.spills == 0, f"{kernel.name} spills {kernel.spills} bytes"
        assert kernel.registers <= MAX_REGISTERS, f"{kernel.name} takes {kernel.registers} registers"
        assert kernel.shared <= MAX_SHARED, f"{kernel.name} takes {kernel.shared} bytes of shared memory"


def test_unpack_stores_16_bytes_at_a_time(compiled: tuple[Path, str]) -> None:
    """Each unpack kernel has a 16-byte store to global memory, and none touches local memory."""
    cubin, _ = compiled
    if cubin.stem != "unpack":
        pytest.skip("about unpack.cu")
    triton = pytest.importorskip("triton")
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not dump.exists():
        pytest.skip("this triton carries no cuobjdump")
    sass = subprocess.run([str(dump), "-sass", str(cubin)], check=True, capture_output=True, text=True).stdout
    functions = re.split(r"Function : ", sass)[1:]
    unpacks = [text for text in functions if "unpack_kernel" in text.splitlines()[0]]
    assert len(unpacks) == 3
    for text in unpacks:
        assert "STG.E.128" in text
    assert not re.search(r"\b(LDL|STL)\b", sass)
