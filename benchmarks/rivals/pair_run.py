"""The training alone, this library and pfl-research, a round of each in turn in one process: `pair_run.py TASK`.

Two processes that do the same may differ by a fifth on a shared machine; rounds that follow one another in one process
differ less. Run by the rivals' interpreter, with this library's root on PYTHONPATH; prints JSON: CPU seconds of each
one's rounds, those of the warm-up left out.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from pfl.callback.base import TrainingProcessCallback
from pfl.metrics import Metrics
from pfl_run import run
from tasks import TASKS, WARM_UP

from benchmarks.engine import loop_of, plain_round


class InTurn(TrainingProcessCallback):
    """After each of pfl's rounds, one of each other."""

    def __init__(self, others: dict[str, Callable[[], object]]) -> None:
        self.others = others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("pfl", *others)}
        self.since = time.process_time()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Called by pfl."""
        self._note("pfl")
        for name, act in self.others.items():
            act()
            self._note(name)
        return False, Metrics()

    def _note(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name].append(now - self.since)
        self.since = now


def main() -> None:
    torch.set_num_threads(1)
    task = TASKS[sys.argv[1]]
    loop = loop_of(task, 1.0)
    in_turn = InTurn({"ours": lambda: loop.round(len(loop.records)), "plain": plain_round(task)})
    run(task, in_turn)
    print(json.dumps({name: seconds[max(1, WARM_UP) :] for name, seconds in in_turn.seconds.items()}))


if __name__ == "__main__":
    main()
