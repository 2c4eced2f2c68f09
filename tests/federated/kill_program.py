"""What the resume tests start: for each method, a run that is killed at each stage of a round, resumed, and hashed.

Prints a JSON line {"method", "stage", "killed", "hash"} for each; stage "" is the run that nothing disturbed. Every run
is a fork of this process, so that torch is imported once.
"""

import hashlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsparse import methods
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Training, run
from fedsparse.federated.faults import VARIABLE, planned
from fedsparse.federated.journal import resumable
from fedsparse.federated.method import Method

ADJUSTING = {"interval": 1, "last": 3, "density": 0.5}
METHODS: dict[str, Method] = {
    "fedavg": methods.FedAvg(density=0.5, initial="snip"),
    "feddst": methods.FedDST(rate=0.3, **ADJUSTING),
    "fedmef": methods.FedMef(rate=0.3, **ADJUSTING),
    "fedrts": methods.FedRTS(rate=0.3, **ADJUSTING),
    "fedsgc": methods.FedSGC(rate=0.3, **{**ADJUSTING, "interval": 2}),
    "fedtiny": methods.FedTiny(rate=0.3, blocks=1, pool=2, **ADJUSTING),
    "prunefl": methods.PruneFL(interval=2, window=2, initial_limit=4, initial_interval=2, weight_seconds=1e-6),
    "ssfl": methods.SSFL(density=0.5),
}
# Every point, those of a checkpoint in two rounds; -1 is the checkpoint before round 0.
STAGES = (
    *("0:open", "-1:manifest", "0:send", "1:send", "1:train", "1:report", "2:update", "1:record", "1:line"),
    *("0:tensors", "1:manifest", "2:prune"),
)
TIMES = {"seconds", "client_seconds"}


def experiment(method: Method) -> Experiment:
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    images = torch.randn(30, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    data = Dataset("toy", images, labels, 3, (0.0,), (1.0,))
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.Dropout(0.2),
        nn.Linear(8, 3),
    )
    parts = np.split(np.arange(30), [6, 14, 20])
    return Experiment(model, method, data, data, parts, Training(3, 3, 2, 8), seed=2)


def digest(out: Path) -> str:
    """Of the last checkpoint's tensors, of the records without times, and of what the result counts."""
    found = hashlib.sha256((out / "checkpoints" / "000003.safetensors").read_bytes())
    for line in (out / "rounds.jsonl").read_text().splitlines():
        record = {key: value for key, value in json.loads(line).items() if key not in TIMES}
        found.update(json.dumps(record).encode())
    result = json.loads((out / "result.json").read_text())
    found.update(json.dumps([result[key] for key in ("status", "rounds", "bytes_up", "bytes_down", "macs")]).encode())
    return found.hexdigest()


def forked(method: Method, out: Path, fault: str) -> int:
    """Run or resume in a fork of this process; the status that `os.waitpid` gives."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = fault
        planned.cache_clear()
        code = 1
        try:
            trial = experiment(method)
            run(trial, out, start=resumable(out, trial))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    for name, method in METHODS.items():
        run(experiment(method))  # what torch does once in a process is done before the forks
        for stage in ("", *STAGES):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder)
                round, _, point = stage.partition(":")
                killed = forked(method, out, f"0:{round}:{point}:kill" if stage else "")
                if killed:
                    forked(method, out, "")
                found = digest(out) if (out / "result.json").exists() else "none"
                print(json.dumps({"method": name, "stage": stage, "killed": killed, "hash": found}), flush=True)


if __name__ == "__main__":
    main()
