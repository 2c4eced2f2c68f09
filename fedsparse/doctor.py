"""What this installation can do: found parts, missing ones, and how to get them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One part: whether it is there, what it is, and where it is missing how to get it."""

    part: str
    found: bool
    detail: str
    remedy: str = ""


def show(as_json: bool) -> None:
    """Print the findings as a table or as JSON."""
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        mark = Text("ok", style="green") if finding.found else Text("missing", style="yellow")
        detail = f"{finding.detail}; {finding.remedy}" if finding.remedy else finding.detail
        table.add_row(finding.part, mark, Text(detail))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def examine() -> list[Finding]:
    """Return every finding, in the order in which a user would look."""
    checks: tuple[Callable[[], list[Finding]], ...] = (machine, torch_found, compiled, triton, mpi, data_sets, disk)
    return [finding for check in checks for finding in check()]


def machine() -> list[Finding]:
    """Return the interpreter and the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("python", True, f"{platform.python_version()} in {sys.prefix}"),
        Finding("processor", True, f"{platform.machine()}, {cores} cores for this process"),
    ]


def torch_found() -> list[Finding]:
    """Return torch and the CUDA devices that it sees."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", False, "not installed", "pip install torch")]
    import torch

    devices = [
        f"{torch.cuda.get_device_name(at)} ({torch.cuda.get_device_properties(at).total_memory / 2**30:.0f} GiB)"
        for at in range(torch.cuda.device_count())
    ]
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return [
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads by default"),
        Finding(
            "cuda",
            bool(devices),
            ", ".join(devices) or f"no device visible ({built})",
            "" if devices else "GPU back ends need an NVIDIA GPU and its driver, and training runs on the CPU without",
        ),
    ]


def compiled() -> list[Finding]:
    """Return the compiled libraries and the instruction sets of the CPU ops."""
    from fedsparse.ops.load import compiled as facts

    return [
        Finding(f"compiled {key.replace('_', ' ')}", value not in (None, False, "", []), worded(value))
        for key, value in facts().items()
    ]


def worded(value: object) -> str:
    """Return a fact in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {worded(inner)}" for key, inner in value.items()) or "none"
    return (
        {None: "none", True: "yes", False: "no"}.get(value, str(value)) if value in (None, True, False) else str(value)
    )


def triton() -> list[Finding]:
    """Return Triton, which compiles the GPU kernels of `fedsparse.kernels` when they are first used."""
    return [package("triton", "triton", 'pip install "fedsparse[gpu]"')]


def mpi() -> list[Finding]:
    """Return mpi4py and the launcher of the MPI that comes with it."""
    remedy = 'pip install "fedsparse[mpi]"'
    launcher = shutil.which(
        "mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    found = Finding("mpirun", False, "not found", remedy)
    if launcher:
        found = Finding("mpirun", True, f"{first_line([launcher, '--version'])} at {launcher}")
    return [package("mpi4py", "mpi4py", remedy), found]


def package(part: str, name: str, remedy: str) -> Finding:
    """Return whether a Python package is installed, without importing it."""
    try:
        return Finding(part, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(part, False, "not installed", remedy)


def first_line(command: list[str]) -> str:
    """Return the first line that a command prints, or why it printed none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else f"prints nothing (exit code {done.returncode})"


def data_sets() -> list[Finding]:
    """Return each data set: where it was found, or how it can be had."""
    from fedsparse import data

    return [
        Finding(f"data {name}", not where.startswith("missing"), where.removeprefix("missing: "))
        for name, where in data.available().items()
    ]


def disk() -> list[Finding]:
    """Return the free space of the folder in which runs are written."""
    free = shutil.disk_usage(Path.cwd()).free
    return [Finding("disk", free > 2**30, f"{free / 1e9:.1f} GB free in {Path.cwd()}")]
