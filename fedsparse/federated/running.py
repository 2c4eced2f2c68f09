"""Run an experiment: open or resume, round after round, with its folder kept up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedsparse.federated.artefacts import write_json
from fedsparse.federated.checkpoint import Checkpoint
from fedsparse.federated.experiment import Experiment
from fedsparse.federated.journal import Journal
from fedsparse.federated.loop import Loop
from fedsparse.federated.result import Record
from fedsparse.federated.status import Status, Teller
from fedsparse.federated.workers import Workers
from fedsparse.nn import dense_passes


def run(
    experiment: Experiment,
    out: Path | None = None,
    on_round: Callable[[Record], None] | None = None,
    workers: Callable[[Experiment], Workers] | None = None,
    start: Checkpoint | None = None,
    on_status: Callable[[Status], None] | None = None,
) -> Record:
    """Run to the last round and return the result.

    With `out`, write rounds.jsonl, checkpoints and, last, result.json there. `on_round` is called with each round's
    record, `on_status` a few times a second with what the run is at. `workers` makes who does the clients' work: by
    default this process alone (`fedsparse.federated.ranks` has the other way). `start` is what `journal.resumable`
    found in `out`: the run goes on from there, bit for bit as if it had never stopped. Ctrl-C ends the run after what
    is done, status "interrupted".
    """
    with dense_passes(experiment.training.dense_passes):
        return _run(experiment, out, on_round, workers, start, on_status)


def _run(
    experiment: Experiment,
    out: Path | None,
    on_round: Callable[[Record], None] | None,
    workers: Callable[[Experiment], Workers] | None,
    start: Checkpoint | None,
    on_status: Callable[[Status], None] | None,
) -> Record:
    loop = Loop(experiment, workers, Teller(out, on_status))
    begun = time.perf_counter() - (start.facts["seconds"] if start is not None else 0.0)
    status = "complete"
    try:
        journal = None if out is None else Journal(out, experiment, start)
        if journal is not None and start is not None:
            loop.restore(start, journal.records)
        else:
            loop.open()
            if journal is not None:
                journal.save(loop, time.perf_counter() - begun)
        for t in range(len(loop.records), experiment.training.rounds):
            record = loop.round(t)
            if journal is not None:
                journal.append(record)
                journal.save(loop, time.perf_counter() - begun)
            if on_round is not None:
                on_round(record)
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        loop.workers.close()
    result = loop.result(status, time.perf_counter() - begun)
    if out is not None:
        write_json(out / "result.json", result)
    return result
