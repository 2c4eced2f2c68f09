"""What a run says of itself, from the records of its rounds."""

from __future__ import annotations

import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from fedsparse.federated.experiment import Experiment

Record = dict[str, Any]


def result_of(experiment: Experiment, records: list[Record], facts: Record, text: bool) -> Record:
    """The content of result.json: `facts` of the loop, and what the records of the rounds add up to."""
    return {
        "name": experiment.name,
        "method": experiment.method.name,
        **experiment.labels,
        "rounds": len(records),
        "clients": len(experiment.parts),
        "accuracy": _last(records, "accuracy"),
        "best_accuracy": max((r["accuracy"] for r in records if r["accuracy"] is not None), default=None),
        **({"perplexity": _last(records, "perplexity")} if text else {}),
        "seconds_per_round": statistics.median(r["seconds"] for r in records) if records else None,
        "client_seconds": statistics.median(r["client_seconds"] for r in records) if records else None,
        **facts,
        "peak_bytes": max([facts["opening"]["peak_bytes"], *(r["peak_bytes"] for r in records)]),
        **{f"{name}_peak_bytes": peak for name, peak in _peaks(records).items()},
        **({"plans": plans_of(records)} if experiment.memory_limits is not None else {}),
        "seed": experiment.seed,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "hardware": f"{_processor()}, {torch.get_num_threads()} threads",
    }


def perplexity(loss: float | None) -> float | None:
    """exp(mean cross-entropy of a token); None where that is no finite number."""
    return math.exp(loss) if loss is not None and loss < math.log(sys.float_info.max) else None


def mean_of(numbers: list[float]) -> float | None:
    """The mean of the finite numbers; None where there is none."""
    finite = [x for x in numbers if math.isfinite(x)]
    return statistics.fmean(finite) if finite else None


def _peaks(records: list[Record]) -> dict[str, int | None]:
    """The most bytes that a client took in an ordinary round and in one that adjusts, and that an update took."""
    kinds = {
        "round": [r["peak_bytes"] for r in records if not r["adjusts"]],
        "adjustment": [r["peak_bytes"] for r in records if r["adjusts"]],
        "update": [r["update_peak_bytes"] for r in records],
    }
    return {kind: max(peaks, default=None) for kind, peaks in kinds.items()}


def plans_of(records: list[Record]) -> list[Record]:
    """The plans by which clients kept their memory limits: of each the clients that had it, and their highest peak."""
    found: dict[tuple[Any, ...], Record] = {}
    for entry in (entry for record in records for entry in record.get("plans", [])):
        key = entry["limit"], entry["level"], entry["pieces"]
        plan = found.setdefault(key, {**dict(zip(("limit", "level", "pieces"), key)), "clients": [], "peak": 0})
        plan["clients"] = sorted({*plan["clients"], entry["client"]})
        plan["peak"] = max(plan["peak"], entry["peak"])
    return [found[key] for key in sorted(found)]


def _last(records: list[Record], key: str) -> Any:
    return next((record[key] for record in reversed(records) if record[key] is not None), None)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
