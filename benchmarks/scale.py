"""Memory of a run by its number of clients: `python -m benchmarks.scale [CLIENTS...]`.

The same 20,000 random images of 28 x 28 are split over 100, 1,000 and 10,000 clients, 100 of them a round; a linear
model, FedAvg. Each in a process of its own: resident bytes after the data are loaded, and at most until the
last round. Clients are index arrays into one data set, so the difference is theirs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.rivals.tasks import TASKS, build
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Training
from fedsparse.methods import FedAvg

SAMPLES, PER_ROUND, ROUNDS = 20_000, 100, 3


def measure(clients: int) -> dict[str, float]:
    """Run in this process; MB and seconds."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (SAMPLES,), generator=generator)
    data = Dataset("random", images, labels, 10, (0.5,), (0.5,))
    test = Dataset("random", images[:100], labels[:100], 10, (0.5,), (0.5,))
    loaded = peak_mb()
    parts = np.array_split(np.random.default_rng(0).permutation(SAMPLES), clients)
    training = Training(ROUNDS, PER_ROUND, 1, 64, 0.01, eval_every=ROUNDS)
    loop = Loop(Experiment(build(TASKS["linear"]), FedAvg(), data, test, parts, training))
    loop.open()
    start, after = time.process_time(), []
    for t in range(ROUNDS):
        loop.round(t)
        after.append(peak_mb())
    seconds = (time.process_time() - start) / ROUNDS
    return {"clients": clients, "loaded": loaded, "first": after[0], "last": after[-1], "seconds": seconds}


def peak_mb() -> float:
    """The most that this process has had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(clients: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(clients)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    print(f"{SAMPLES} samples, {PER_ROUND} clients a round, {ROUNDS} rounds; resident MB")
    print(
        "| clients | with the data | after round 1 | after the last | CPU s a round |\n| --- | --- | --- | --- | --- |"
    )
    for clients in [int(word) for word in sys.argv[1:]] or [100, 1000, 10_000]:
        row = in_a_process(clients)
        numbers = f"{row['loaded']:.0f} | {row['first']:.0f} | {row['last']:.0f} | {row['seconds']:.2f}"
        print(f"| {clients} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
