"""A fake of the federated loop, for tests of the command line around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

OnRound = Callable[[dict[str, Any]], None]


class FakeLoop:
    """Stands in for `federated.run`: invented records and checkpoints, real files.

    Fails before round `fail_at` as told (`fails`: that run alone).
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.fail_at = 0
        self.fails: str | None = None
        self.seen: list[Any] = []

    def __call__(
        self, experiment: Any, out: Path, on_round: OnRound, start: Any = None, on_status: Any = None
    ) -> dict[str, Any]:
        self.seen.append(experiment)
        rounds = []
        for t in range(experiment.training.rounds):
            if self.failure is not None and t == self.fail_at and self.fails in (None, experiment.name):
                raise self.failure
            rounds.append(self.record(t, getattr(experiment.method, "density", 1.0)))
            with (out / "rounds.jsonl").open("a") as file:
                file.write(json.dumps(rounds[-1]) + "\n")
            (out / "checkpoints").mkdir(exist_ok=True)
            (out / "checkpoints" / f"{t + 1:06}.json").write_text("{}")
            on_round(rounds[-1])
        result = self.result(experiment, rounds)
        (out / "result.json").write_text(json.dumps(result))
        return result

    @staticmethod
    def record(t: int, density: float) -> dict[str, Any]:
        return {
            "round": t,
            "accuracy": 0.5 + 0.1 * t if t % 2 else None,
            "loss": 1.0,
            "train_loss": 1.0,
            "density": density,
            "layer_densities": {} if density == 1 else {"conv": density},
            "mask_change": 0.0,
            "seconds": 0.25,
            "client_seconds": 0.02,
            "bytes_down": int(1_000_000 * density),
            "bytes_up": int(1_000_000 * density),
            "peak_bytes": 5_000_000,
            "macs": int(2_000_000 * density),
            "clients": [0, 1],
            "rejected": [{"client": 1, "reason": "values holds a NaN"}] if t == 1 else [],
        }

    @staticmethod
    def result(experiment: Any, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        last = rounds[-1]
        return {
            "name": experiment.name,
            "method": experiment.method.name,
            **experiment.labels,
            "status": "complete",
            "rounds": len(rounds),
            "accuracy": 0.8,
            "best_accuracy": 0.8,
            "density": last["density"],
            "macs": last["macs"],
            "dense_macs": 2_000_000,
            "seconds_per_round": 0.25,
            "peak_bytes": last["peak_bytes"],
            "bytes_down": sum(record["bytes_down"] for record in rounds),
            "bytes_up": sum(record["bytes_up"] for record in rounds),
            "total_seconds": 1.0,
            "seed": experiment.seed,
            "versions": {},
            "hardware": "none",
        }
