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
