"""Which back end runs an op: by device, or forced with `use_backend`.

cpu        compiled C++ on blocked tensors (CPU tensors, float32 and float64; strips in bfloat16 on AMX: `amx`)
dense      unpack into a scratch weight, then torch's dense op; gradient gathered (any device)
triton     Triton kernels (CUDA tensors; with TRITON_INTERPRET=1, for tests, CPU tensors)
condensed  the same with 16 rows at a time on tensor cores, for low densities of single weights
reference  a few lines of dense torch, the oracle of the tests (any device)
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

BACKENDS = ("cpu", "dense", "triton", "condensed", "reference")
_DEFAULTS = {"cpu": "cpu"}
_DEVICES = {"cpu": "cpu", "triton": "cuda", "condensed": "cuda"}
_forced: str | None = None
_T = TypeVar("_T")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context every op of the process runs on that back end, or raises where it cannot."""
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"back end {name!r} is unknown; choose one of {', '.join(BACKENDS)}.")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def active_backend(device: torch.device | str) -> str:
    """Name of the back end that runs ops on tensors of that device; ValueError where a forced one cannot."""
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    name = _DEFAULTS.get(kind, "dense") if _forced is None else _forced
    if _DEVICES.get(name, kind) != kind and not (_DEVICES[name] == "cuda" and _interprets()):
        raise ValueError(f"back end {name!r} needs tensors on {_DEVICES[name]}, not on {kind}.")
    return name


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels take tensors of that device: CUDA with triton installed; where it interprets, the CPU."""
    return _interprets() or (device.type == "cuda" and has_triton())


@cache
def has_triton() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


def has_kernels(dtype: torch.dtype, granularity: int) -> bool:
    """Whether the CPU has sparse kernels of convolutions for that dtype and masks of that granularity."""
    if dtype == torch.bfloat16:
        return granularity % 16 == 0 and torch.ops.fedsparse.tiles() != "none"
    return dtype in (torch.float32, torch.float64)


def is_forced() -> bool:
    """Whether `use_backend` is in force."""
    return _forced is not None


def checked_backend(op: str, table: Mapping[str, _T], device: torch.device) -> str:
    """The active back end; ValueError where the op has none of that name."""
    name = active_backend(device)
    if name not in table:
        raise ValueError(f"{op} has no back end {name!r}; choose one of {', '.join(table)}.")
    return name


def kernel_backend(op: str, table: Mapping[str, _T], device: torch.device) -> str:
    """As `checked_backend`, but on CUDA Triton kernels where none is forced and triton is installed."""
    name = checked_backend(op, table, device)
    return "triton" if name == "dense" and not is_forced() and device.type == "cuda" and has_triton() else name
