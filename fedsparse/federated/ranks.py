"""The same run on the ranks of an MPI job: rank 0 serves, every other rank is a worker that runs many clients.

Where there is room for it, or `server_works` says so, rank 0 trains clients too.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from pathlib import Path

import torch

from fedsparse.comm.mpi import Link, local_size, survives_lost_ranks
from fedsparse.federated.checkpoint import Checkpoint
from fedsparse.federated.experiment import Experiment, server_of, worker_of
from fedsparse.federated.local_sums import LocalSum
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.result import Record
from fedsparse.federated.running import run
from fedsparse.federated.status import Status
from fedsparse.federated.worker_rank import serve
from fedsparse.nn import dense_passes
from fedsparse.nn.walk import parameters_of

FEW = 8
"""Ranks up to which rank 0's own work is worth what the others wait for it, half a minibatch a client."""


def run_on_ranks(
    experiment: Experiment,
    out: Path | None = None,
    on_round: Callable[[Record], None] | None = None,
    start: Checkpoint | None = None,
    on_status: Callable[[Status], None] | None = None,
) -> Record | None:
    """As `run`, on every rank of the job at once; the result on rank 0, None on the others.

    An exception that nobody handles ends every rank where it is rank 0's or Open MPI runs without ULFM, else that rank
    alone. With ULFM the process ends with `Link.exit_code`.
    """
    if experiment.training.cohort > 1:
        raise ValueError(f"training.cohort is {experiment.training.cohort}, but a rank trains one client at a time")
    link = Link()
    if link.size < 2:
        raise ValueError("an MPI run needs at least 2 ranks: rank 0 serves, the others work")
    if survives_lost_ranks():
        atexit.register(link.leave)
    try:
        if link.rank:
            with dense_passes(experiment.training.dense_passes):
                worker = worker_of(experiment)
                view = server_of(experiment, worker.model, worker.names)
                sums = LocalSum(worker, view) if experiment.sums == "local" else None
                serve(link, worker, experiment.failures.patience, sums)
            return None
        samples = [len(part) for part in experiment.parts]
        own = worker_of(experiment) if server_works(experiment, link.size, local_size()) else None
        workers = MPIWorkers(link, samples, experiment.failures, own, local_sums=experiment.sums == "local")
        return run(experiment, out, on_round, lambda _: workers, start, on_status)
    except BaseException:
        atexit.register(link.fail)
        raise


def server_works(experiment: Experiment, ranks: int, here: int) -> bool:
    """Whether rank 0 trains clients too.

    Where the experiment leaves it open: in a job of few ranks of which the `here` on this host have a core for each of
    their threads, or a GPU each.
    """
    if experiment.server_works is not None:
        return experiment.server_works
    if parameters_of(experiment.model)[0].is_cuda:
        room = torch.cuda.device_count()
    else:
        room = len(os.sched_getaffinity(0)) // torch.get_num_threads()
    return ranks <= FEW and here <= room
