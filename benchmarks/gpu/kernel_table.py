"""Every GPU kernel's registers, spills, shared memory and kinds of instructions, without a GPU.

    python -m benchmarks.gpu.kernel_table [--arch 90] [--only strip]

Triton kernels are compiled for the architecture as a GPU would, CUDA C++ by nvcc (left out, with a line that says so,
where there is none). The counts are of the machine code.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from .kernel_list import kernels
from .machine_code import INSTRUCTIONS, ROOT, Code, MissingToolError, cuda_code

SHARED_LIMIT = 227 * 1024
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def problems(code: Code, tensor_cores: bool) -> list[str]:
    """What is wrong with a kernel, one sentence each."""
    found = []
    if code.stack or code.spills or code.instructions["local"]:
        found.append(f"it spills: {code.stack} bytes of stack, {code.spills} of local memory")
    if code.shared > SHARED_LIMIT:
        found.append(f"it takes {code.shared} bytes of shared memory, more than {SHARED_LIMIT}")
    if code.instructions["atomic"]:
        found.append("it has atomic instructions, so that its bits may differ from run to run")
    if tensor_cores and not code.instructions["wgmma"] + code.instructions["mma"]:
        found.append("it was meant for tensor cores and does not use them")
    if tensor_cores and not code.instructions["cp.async"]:
        found.append("it was meant to load with cp.async and does not")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 where a kernel has a problem."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernel_table", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 80 or 90 (90)")
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    args = parser.parse_args(arguments)
    print(_line("kernel", "registers", "stack", "spills", "shared", *INSTRUCTIONS))
    wrong = []
    for listed in kernels():
        if args.only in listed.label:
            code = listed.compile(arch=args.arch)
            _print(code)
            wrong += [f"{code.name}: {sentence}" for sentence in problems(code, listed.tensor_cores)]
    for source in SOURCES:
        if args.only in source.stem:
            wrong += _of_source(args.arch, source)
    for sentence in wrong:
        print(sentence)
    return 1 if wrong else 0


def _of_source(arch: int, source) -> list[str]:  # type: ignore[no-untyped-def]
    try:
        codes = cuda_code(source, arch)
    except MissingToolError as reason:
        print(f"{source.name}: not compiled, {reason}")
        return []
    for code in codes:
        _print(code)
    return [f"{code.name}: {sentence}" for code in codes for sentence in problems(code, False)]


def _print(code: Code) -> None:
    counts = code.instructions.values()
    print(_line(_short(code.name), code.registers, code.stack, code.spills, code.shared, *counts), flush=True)


def _short(name: str) -> str:
    """The function and the word of a mangled C++ name."""
    found = re.search(r"\d+([a-z_]+_kernel)I(\w+?)EE", name)
    return f"{found.group(1)}<{found.group(2)}>" if found else name


def _line(name: object, *cells: object) -> str:
    return f"{name!s:<44}" + "".join(f"{cell!s:>10}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
