"""The same run on the ranks of an MPI job: rank 0 serves, every other rank is a worker that runs many clients."""

from __future__ import annotations

import atexit
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from fedsparse.comm.mpi import Link
from fedsparse.federated.checkpoint import Checkpoint
from fedsparse.federated.errors import RunError
from fedsparse.federated.experiment import Experiment, worker_of
from fedsparse.federated.loop import run
from fedsparse.federated.result import Record
from fedsparse.federated.workers import MPIWorkers, serve


def run_on_ranks(
    experiment: Experiment,
    out: Path | None = None,
    on_round: Callable[[Record], None] | None = None,
    start: Checkpoint | None = None,
    deadline: float = 600.0,
    patience: float = 3600.0,
) -> Record | None:
    """As `run`, on every rank of the job at once; the result on rank 0, None on the others.

    deadline: seconds that a rank may take for one client before it is given up and its client goes to another rank.
    patience: seconds that a worker waits for the server. An exception that nobody handles ends every rank.
    """
    link = Link()
    if link.size < 2:
        raise ValueError("an MPI run needs at least 2 ranks: rank 0 serves, the others work")
    try:
        if link.rank:
            if serve(link, worker_of(experiment), patience):
                atexit.register(link.leave, 0)
            return None
        samples = [len(part) for part in experiment.parts]
        result = run(experiment, out, on_round, lambda _: MPIWorkers(link, samples, deadline), start)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _fail(link)
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        _fail(link)
        raise
    if link.lost:
        atexit.register(link.leave, 0)
    return {**result, "ranks": link.size, "lost_ranks": sorted(link.lost)}


def _fail(link: Link) -> None:
    """End the job with exit code 1: mpirun reports an abort as success where a rank was lost before."""
    if link.lost:
        link.leave(1)
    link.abort(1)
