"""What rank 0 does for a round's reports: `mpirun -n 3 python -m benchmarks.rank_zero [FedAvg|FedDST] [DENSITY]`.

Every report travels to rank 0 and is judged and added there. The other design adds on each rank and sends one sum a
round: int64 for every number that any client may send. This prints the bytes of both, and rank 0's CPU milliseconds a
report: judging and adding, which the other design moves to the ranks, and receiving. ResNet-20 (random images of 32 x
32), 10 clients of 50 samples a round; medians of the rounds after the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.rivals.tasks import TASKS, build, images
from fedsparse import methods
from fedsparse.comm.mpi import world_size
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Training
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.ranks import run_on_ranks
from fedsparse.federated.total import Total
from fedsparse.federated.workers import Done

ROUNDS, CLIENTS = 5, 10


def experiment(name: str, density: float) -> Experiment:
    """The run that is measured."""
    task = replace(TASKS["resnet20"], clients=CLIENTS, samples=50)
    x, y = images(task)
    data = Dataset("random", x, y, task.classes, (0.0,) * task.shape[0], (1.0,) * task.shape[0])
    test = replace(data, images=x[:10], labels=y[:10])
    method = methods.FedAvg(density=density) if name == "FedAvg" else methods.FedDST(density=density, interval=1)
    parts = list(np.arange(len(y)).reshape(CLIENTS, -1))
    training = Training(ROUNDS, CLIENTS, 1, task.batch, task.lr, eval_every=ROUNDS)
    return Experiment(build(task), method, data, test, parts, training, server_works=False)


def sum_bytes(total: Total) -> int:
    """What one rank's sum would take, uncompressed: its int64 numbers, and the indices of pairs."""
    held: list[Any] = [*total._dense.values()]
    held += [tensor for pair in (*total._masked.values(), *total._pairs.values()) for tensor in pair]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def main() -> None:
    torch.set_num_threads(1)
    name, density = sys.argv[1] if len(sys.argv) > 1 else "FedAvg", float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    judging: list[float] = []
    receiving: list[float] = []
    sums: list[int] = []
    accept, work = Loop._accept, MPIWorkers.work

    def timed_accept(loop: Loop, total: Total, *arguments: Any) -> None:
        begun = time.thread_time()
        accept(loop, total, *arguments)
        judging.append(time.thread_time() - begun)
        sums.append(sum_bytes(total))

    def timed_work(workers: MPIWorkers, kind: Any, clients: Sequence[int], *arguments: Any) -> Iterator[Done]:
        found = work(workers, kind, clients, *arguments)
        for _ in clients:
            begun = time.thread_time()
            done = next(found)
            receiving.append(time.thread_time() - begun)
            yield done

    Loop._accept, MPIWorkers.work = timed_accept, timed_work  # type: ignore[method-assign]
    result = run_on_ranks(experiment(name, density))
    if result is None:
        return
    last = CLIENTS * (ROUNDS - 1)
    reports = result["bytes_up"] / ROUNDS
    print(f"{name}, density {density:g}, {world_size()} ranks, {CLIENTS} reports a round")
    print(f"bytes a round: {reports / 1e6:.2f} MB of reports; {(world_size() - 1) * sums[-1] / 1e6:.2f} MB of sums")
    milliseconds = [1e3 * statistics.median(column[-last:]) for column in (judging, receiving)]
    print(f"rank 0, CPU ms a report: {milliseconds[0]:.2f} judging and adding, {milliseconds[1]:.2f} receiving")
    print(f"a client of 50 samples: {1e3 * result['client_seconds']:.0f} ms on its rank")


if __name__ == "__main__":
    main()
