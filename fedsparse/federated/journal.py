"""The folder of a run while it runs: a line a round, checkpoints, and what a resumed run finds there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedsparse.federated import checkpoint, faults
from fedsparse.federated.artefacts import append_line, write_atomic
from fedsparse.federated.checkpoint import Checkpoint, CheckpointError
from fedsparse.federated.experiment import Experiment
from fedsparse.federated.identity import difference, identity
from fedsparse.federated.result import Record

if TYPE_CHECKING:
    from fedsparse.federated.loop import Loop

RECORDS = "rounds.jsonl"


def resumable(out: Path, experiment: Experiment, rounds: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run's folder, or that after `rounds` rounds; None where no round was finished either.

    Raises CheckpointError if it or the records do not have their hashes, if there are records but no checkpoint, or if
    the experiment is not the one that was started. Changes nothing.
    """
    there = checkpoint.saved(out)
    if not there and rounds is None:
        _check_none_finished(out)
        return None
    if rounds is not None and rounds not in there:
        kept = ", ".join(map(str, there)) or "none"
        raise CheckpointError(f"{out} has no checkpoint after {rounds} rounds (there are: {kept})")
    newest = there[-1] if rounds is None else rounds
    try:
        found = checkpoint.load(out, newest)
    except CheckpointError as error:
        older = [n for n in there if n < newest]
        hint = f"; the one before it is chosen by --from {older[-1]}" if older else ""
        raise CheckpointError(f"{error}{hint}") from None
    differs = difference(identity(experiment), found.facts["identity"])
    if differs:
        raise CheckpointError(f"{out} is not the run of this configuration: {differs} when it was started")
    _lines(out, found)
    return found


class Journal:
    """Writes records and checkpoints of one run; with `start`, its folder is set back to that checkpoint first."""

    def __init__(self, out: Path, experiment: Experiment, start: Checkpoint | None) -> None:
        self.out, self.settings = out, experiment.checkpoints
        self.identity = identity(experiment)
        lines = _lines(out, start) if start is not None else []
        self.records: list[Record] = [json.loads(line) for line in lines]
        self._hash = hashlib.sha256(b"".join(lines))
        self._set_back(lines, -1 if start is None else start.rounds)

    def _set_back(self, lines: list[bytes], rounds: int) -> None:
        """Leave these records and no checkpoint of later rounds.

        The result goes first, then the checkpoints, the newest first, and only then records, so that whatever ends this
        midway leaves records for the newest checkpoint.
        """
        (self.out / "result.json").unlink(missing_ok=True)
        for newer in reversed(checkpoint.saved(self.out)):
            if newer > rounds:
                checkpoint.delete(self.out, newer)
        if (self.out / RECORDS).exists() and (self.out / RECORDS).read_bytes() != b"".join(lines):
            write_atomic(self.out / RECORDS, b"".join(lines))

    def append(self, record: Record) -> None:
        """Add a round's record as a line."""
        t = record["round"]
        faults.reach("record", t)
        self._hash.update(append_line(self.out / RECORDS, record, lambda: faults.reach("line", t)))

    def save(self, loop: Loop, seconds: float) -> None:
        """Write a checkpoint of the loop, if one is due; `seconds`: how long the run has taken so far."""
        every, rounds = self.settings.every, len(loop.records)
        if not every or (rounds % every and rounds < loop.experiment.training.rounds):
            return
        tensors, facts = loop.state()
        facts |= {"seconds": seconds, "records_sha256": self._hash.hexdigest(), "identity": self.identity}
        checkpoint.save(self.out, Checkpoint(rounds, tensors, facts), self.settings.keep)


def _check_none_finished(out: Path) -> None:
    path = out / RECORDS
    finished = path.read_bytes().count(b"\n") if path.exists() else 0
    if finished:
        raise CheckpointError(
            f"{out} has finished rounds ({finished}) and no checkpoint to go on from: its checkpoints were deleted, or "
            "never written (checkpoints.every = 0); start it anew in another folder"
        )


def _lines(out: Path, start: Checkpoint) -> list[bytes]:
    """The lines of rounds.jsonl that belong to a checkpoint, each with its end."""
    path = out / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)[: start.rounds] if path.exists() else []
    if hashlib.sha256(b"".join(lines)).hexdigest() != start.facts["records_sha256"]:
        raise CheckpointError(
            f"the first {start.rounds} lines of {path} are not those of the checkpoint, so it was truncated or edited"
        )
    return lines
