"""What the numbers were measured on: device, driver, versions, commit, date, clocks."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from fedsparse.ops.times import processor

Facts = dict[str, str | int | float | None]
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit"


def facts(root: Path, device: str) -> Facts:
    """Hardware, software and commit; a fact that cannot be read is None."""
    found: Facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(root), "rev-parse", "HEAD"),
        "changed_files": _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "triton": _triton_version(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "device": "cpu",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return found


def clocks(when: str) -> Facts:
    """Clocks (MHz), temperature (C) and power (W) as the driver reports them now; keys end in `when`."""
    line = _output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader")
    fields = [field.strip() for field in line.splitlines()[0].split(",")] if line else []
    names = [name.replace(".", "_") for name in _QUERY.split(",")]
    return {f"{name}_{when}": field for name, field in zip(names, fields, strict=False)}


def slug(name: str) -> str:
    """A device's name as part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
