"""Compiles kernels for a GPU that need not be there, and reads what the assembler made of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).resolve().parents[2]
# What the machine code says, by the name that the table gives it.
INSTRUCTIONS = {
    "wgmma": r"\bHGMMA\b",
    "mma": r"\b[HI]MMA\b",
    "ffma": r"\bFFMA\b",
    "cp.async": r"\bLDGSTS\b",
    "ld.16B": r"\bLDG\.E\S*\.128\b",
    "st.16B": r"\bSTG\.E\S*\.128\b",
    "local": r"\b(?:LDL|STL)\b",
    "atomic": r"\b(?:ATOMG?|RED)\b",
}
# What the assembler is given, by the same names: disassembling takes longer than compiling.
PTX_INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async\b",
    "mma": r"\bmma\.sync\b",
    "ffma": r"\bfma\.rn\.f32\b",
    "cp.async": r"\bcp\.async\.c[ag]\b",
    "ld.16B": r"\bld\.global\S*\.v(?:4\.b32|2\.b64)\b",
    "st.16B": r"\bst\.global\S*\.v(?:4\.b32|2\.b64)\b",
    "local": r"\b(?:ld|st)\.local\b",
    "atomic": r"\b(?:atom|red)\.(?:\w+\.)*global\b",
}


@dataclass(frozen=True)
class Code:
    """One kernel as compiled: registers a thread; bytes of stack, spills and shared memory; instructions by kind."""

    name: str
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: Mapping[str, int]
    ptx: str = ""


class MissingToolError(RuntimeError):
    """A tool of the CUDA toolkit is not here."""


def triton_code(
    name: str,
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    warps: int,
    arch: int = 90,
    aligned_sizes: bool = False,
    disassembled: bool = True,
    fusion: bool = True,
) -> Code:
    """A Triton kernel for sm_<arch>; pointers are multiples of 16 bytes, sizes of 16 only where `aligned_sizes`.

    fusion: whether a product and a sum may be rounded once. Instructions are counted in the machine code, or where it
    is not `disassembled`, in the PTX that it was made of.
    """
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if aligned_sizes or kind.startswith("*")
    }
    types = dict(signature) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constexprs=dict(constants), attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", _dump("-res-usage", file.name))}
        counts = _counts(_dump("-sass", file.name)) if disassembled else _counts(compiled.asm["ptx"], PTX_INSTRUCTIONS)
    shared = compiled.metadata.shared
    return Code(name, usage["REG"], usage["STACK"], usage["LOCAL"], shared, counts, compiled.asm["ptx"])


def cuda_code(source: Path, arch: int = 90) -> list[Code]:
    """Every kernel of a CUDA C++ file, compiled for sm_<arch>."""
    include = Path(torch.__file__).parent / "include"
    command = [_nvcc(), "-std=c++20", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", f"-I{ROOT / 'csrc'}", f"-I{include}"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        done = subprocess.run([*command, str(source), "-o", file.name], check=True, capture_output=True, text=True)
        bodies = _functions(_dump("-sass", file.name))
    return [_of_log(block, bodies) for block in _blocks(done.stdout + done.stderr)]


def _blocks(log: str) -> list[re.Match[str]]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        re.S,
    )
    parts = re.split(r"(?=ptxas info +: Compiling entry)", log)
    return [found for part in parts if (found := pattern.search(part))]


def _of_log(found: re.Match[str], bodies: Mapping[str, str]) -> Code:
    name, stack, stores, loads, registers, shared = found.groups()
    counts = _counts(bodies[name])
    return Code(name, int(registers), int(stack), int(stores) + int(loads), int(shared or 0), counts)


def _functions(sass: str) -> dict[str, str]:
    parts = re.split(r"Function : ", sass)[1:]
    return {part.split(None, 1)[0]: part for part in parts}


def _counts(code: str, patterns: Mapping[str, str] = INSTRUCTIONS) -> dict[str, int]:
    return {name: len(re.findall(pattern, code)) for name, pattern in patterns.items()}


def _dump(option: str, file: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        raise MissingToolError("this triton carries no cuobjdump")
    return subprocess.run([str(tool), option, file], check=True, capture_output=True, text=True).stdout


def _nvcc() -> str:
    found = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")
    if not Path(found).exists():
        raise MissingToolError("no nvcc in PATH, CUDA_HOME or /usr/local/cuda")
    return found
