"""What makes a run the run that it is: everything that decides its numbers, as plain JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.federated.experiment import Experiment
from fedsparse.federated.method import Method

FREE = ("name", "labels", "failures", "checkpoints", "server_works", "sums")
"""Fields of an experiment that a resumed run may change: they decide no number of a run that nothing disturbs."""


def identity(experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment, the hashes of its model and data, and the number of threads."""
    found = {f.name: _plain(getattr(experiment, f.name)) for f in fields(experiment) if f.name not in FREE}
    return json.loads(json.dumps({**found, "threads": torch.get_num_threads()}))


def difference(now: Mapping[str, Any], then: Mapping[str, Any], path: str = "") -> str | None:
    """Where two identities first differ, as "train.lr is 0.1 but was 0.05"; None where they are equal."""
    for key in [*now, *(key for key in then if key not in now)]:
        a, b, name = now.get(key), then.get(key), f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            inner = difference(a, b, f"{name}.")
            if inner is not None:
                return inner
        elif a != b:
            return f"{name} is {a} but was {b}"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _hash([t for tensors in (value.parameters(), value.buffers()) for t in tensors])
    if isinstance(value, Method):
        return {"name": value.name, **asdict(value)}
    if isinstance(value, np.ndarray | Tensor):
        return _hash([value])
    if hasattr(value, "labels") and hasattr(value, "batch"):
        first, last = value.batch(np.array([0]))[0], value.batch(np.array([len(value) - 1]))[0]
        return {"name": value.name, "samples": len(value), "content": _hash([value.labels, first, last])}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _hash(value)
    return value


def _hash(arrays: Sequence[Any]) -> str:
    """SHA-256 over the shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        data = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array))
        digest.update(f"{data.dtype}{data.shape}".encode())
        digest.update(data.data if data.size else b"")
    return digest.hexdigest()[:16]
