"""Which back end runs an op: by device, or forced with `use_backend`.

cpu        compiled C++ on blocked tensors (CPU tensors, float32 and float64)
dense      unpack into a scratch weight, then torch's dense op; gradient gathered (any device)
triton     Triton kernels (CUDA tensors)
reference  a few lines of dense torch, the oracle of the tests (any device)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch

BACKENDS = ("cpu", "dense", "triton", "reference")
_DEFAULTS = {"cpu": "cpu"}
_DEVICES = {"cpu": "cpu", "triton": "cuda"}
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
    if _DEVICES.get(name, kind) != kind:
        raise ValueError(f"back end {name!r} needs tensors on {_DEVICES[name]}, not on {kind}.")
    return name


def is_forced() -> bool:
    """Whether `use_backend` is in force."""
    return _forced is not None


def checked_backend(op: str, table: Mapping[str, _T], device: torch.device) -> str:
    """The active back end; ValueError where the op has none of that name."""
    name = active_backend(device)
    if name not in table:
        raise ValueError(f"{op} has no back end {name!r}; choose one of {', '.join(table)}.")
    return name
