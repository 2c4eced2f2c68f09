"""The same run on the ranks of an MPI job: rank 0 serves, every other rank is a worker that runs many clients."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path

from fedsparse.comm.mpi import Link, survives_lost_ranks
from fedsparse.federated.checkpoint import Checkpoint
from fedsparse.federated.experiment import Experiment, worker_of
from fedsparse.federated.mpi_workers import MPIWorkers, serve
from fedsparse.federated.result import Record
from fedsparse.federated.running import run
from fedsparse.federated.status import Status
from fedsparse.nn import dense_passes


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
                serve(link, worker_of(experiment), experiment.failures.patience)
            return None
        samples = [len(part) for part in experiment.parts]
        workers = MPIWorkers(link, samples, experiment.failures)
        return run(experiment, out, on_round, lambda _: workers, start, on_status)
    except BaseException:
        atexit.register(link.fail)
        raise
