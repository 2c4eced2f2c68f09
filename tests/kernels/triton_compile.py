"""Compiles a Triton kernel for Hopper on a machine without a GPU, and reads what the assembler made of it."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Compiled:
    """Resources of one kernel (bytes; registers a thread) and its PTX."""

    registers: int
    stack: int
    local: int
    shared: int
    ptx: str


def compile_for_hopper(kernel: Any, signature: dict[str, str], constants: dict[str, Any], warps: int) -> Compiled:
    """Compile for sm_90 with every pointer and every size known to be a multiple of 16."""
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    usage = _usage(compiled.asm["cubin"])
    return Compiled(usage["REG"], usage["STACK"], usage["LOCAL"], compiled.metadata.shared, compiled.asm["ptx"])


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton carries no cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True)
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}
