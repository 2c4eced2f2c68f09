"""Invented but realistic records of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = ["conv1", *(f"stage{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "linear"]
DENSE_BYTES = 10 * 1_090_000


def densities(density: float, shift: int) -> dict[str, float]:
    if density == 1:
        return dict.fromkeys(LAYERS, 1.0)
    drift = 0.01 * shift
    return {
        name: min(1.0, density * (2.6 - 2.2 * at / len(LAYERS)) * (1 + drift * (-1) ** at))
        for at, name in enumerate(LAYERS)
    }


def invented_rounds(method: str, density: float, rounds: int, ceiling: float) -> list[dict[str, Any]]:
    noise = np.random.default_rng(len(method)).normal(0, 0.012, rounds)
    records = []
    for t in range(rounds):
        adjusts = method == "fedtiny" and t > 0 and t % 5 == 0 and t < 0.8 * rounds
        mask = int(DENSE_BYTES / 32) if (adjusts or t == 0) and density < 1 else 0
        change = 0.3 * (1 + math.cos(math.pi * t / (0.8 * rounds))) / 2 if adjusts else 0.0
        down = int(DENSE_BYTES * density) + mask
        records.append(
            {
                "round": t,
                "accuracy": float(np.clip(ceiling * (1 - math.exp(-(t + 1) / 6)) + noise[t], 0.1, 1)),
                "loss": 2.3 * math.exp(-t / 8) + 0.1,
                "train_loss": 2.2 * math.exp(-t / 7) + 0.05,
                "density": density,
                "layer_densities": densities(density, t // 5 if method == "fedtiny" else 0),
                "mask_change": change,
                "seconds": (1.9 if density == 1 else 0.9) + 0.05 * float(noise[t]),
                "client_seconds": 0.15,
                "bytes_down": down,
                "bytes_up": int(DENSE_BYTES * density) + (mask // 3 if adjusts else 0),
                "peak_bytes": int((92 if density == 1 else 38) * 1e6),
                "macs": int(40.5e6 * (1 if density == 1 else 0.17)),
                "clients": list(range(10)),
                "rejected": [{"client": 3, "reason": "values holds a NaN"}] if (method, t) == ("fedtiny", 7) else [],
            }
        )
    return records


def write_run(
    folder: Path, name: str, method: str, density: float, rounds: int = 40, ceiling: float = 0.95, seed: int = 1
) -> Path:
    records = invented_rounds(method, density, rounds, ceiling)
    folder.mkdir(parents=True)
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {
        "name": name,
        "method": method,
        "model": "resnet20",
        "dataset": "digits",
        "rounds": rounds,
        "accuracy": records[-1]["accuracy"],
        "best_accuracy": max(record["accuracy"] for record in records),
        "density": density,
        "macs": records[-1]["macs"],
        "dense_macs": int(40.5e6),
        "seconds_per_round": float(np.median([record["seconds"] for record in records])),
        "peak_bytes": max(record["peak_bytes"] for record in records),
        "bytes_down": sum(record["bytes_down"] for record in records),
        "bytes_up": sum(record["bytes_up"] for record in records),
        "opening": {"bytes_down": 0, "bytes_up": 0, "seconds": 2.5},
        "total_seconds": sum(record["seconds"] for record in records),
        "status": "complete",
        "seed": seed,
        "versions": {"fedsparse": "0.1.0", "torch": "2.11.0"},
        "hardware": "2 cores",
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


MOMENTS = [{"seconds": 0.0, "live": 5, "peak": 5}, {"seconds": 0.002, "live": 3, "peak": 9}]


def write_profile(folder: Path) -> None:
    """A profile of two steps, as `fedsparse profile` writes it."""
    step = {"name": "dense", "held": 3, "peak": 9, "seconds": 0.1, "moments": MOMENTS, "marks": {"backward": 0.001}}
    (folder / "profile.json").write_text(json.dumps({"steps": [step, {**step, "name": "sparse"}]}))
