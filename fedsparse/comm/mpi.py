"""Bytes between MPI ranks: raw buffers, no pickling, no wait without a bound.

Started as `mpirun --with-ft ulfm -n N ...` (Open MPI) a killed rank is reported and the others go on; a stopped one
shows by its silence. Waiting polls with a back-off from 10 us to 5 ms, so that a waiting rank leaves
its core to others.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

FIRST_WAIT, SENDING_WAIT, LONGEST_WAIT = 1e-5, 1e-4, 5e-3
"""Seconds between polls: at first, at most while a message is on its way out (MPI moves it only when it is polled), and
at most."""
LARGE, ROOMS = 1 << 20, 2
"""Bytes from which on a message's memory is used again, and of how many messages it is kept."""
HALT = signal.SIGUSR1
"""The signal that mpirun passes on to all ranks: rank 0 is to end the run as at Ctrl-C, the others wait for its word.
(At SIGINT or SIGTERM mpirun kills all within a second or two.)"""
_UNHELD = 2  # references to a room that nobody reads: the list's and that of the question


def world_size() -> int:
    """Ranks of the MPI job that this process was started in, 1 where it was started by itself; imports no MPI."""
    return _told(("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE"), 1)


def world_rank() -> int:
    """This process's rank in the MPI job that it was started in, else 0; imports no MPI."""
    return _told(("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"), 0)


def local_rank() -> int:
    """This process's place among the ranks of its host, else 0; imports no MPI."""
    return _told(("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"), 0)


def local_size() -> int:
    """Ranks of the job on this host, 1 where the process was started by itself; imports no MPI."""
    return _told(("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"), 1)


def _told(names: tuple[str, ...], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), otherwise)


def survives_lost_ranks() -> bool:
    """Whether this job was started with Open MPI's ULFM (`mpirun --with-ft ulfm`); imports no MPI."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112


@dataclass(frozen=True)
class Received:
    """One message: the rank it came from, its tag, its bytes."""

    source: int
    tag: int
    data: memoryview


class Link:
    """This process's end of the MPI job.

    rank, size: as MPI has them. lost: ranks that MPI reports as failed, or that `give_up` named. abandoned: whether
    this worker waited for rank 0 in vain. exit_code: what this process is to end with. beyond_reach: whether a rank was
    given up whose process may still be there, on another host, for which MPI would wait.
    """

    exit_code: ClassVar[int] = 0
    beyond_reach: ClassVar[bool] = False
    _put_back: ClassVar[list[Received]] = []

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi: Any = MPI
        self._world = MPI.COMM_WORLD
        self._world.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.lost: set[int] = set()
        self.abandoned = False
        self._sending: list[tuple[int, Any, bytes]] = []
        self._processes: dict[int, tuple[str, int]] = {}
        self._rooms: list[Any] = []

    def send(self, to: int, tag: int, data: bytes) -> None:
        """Start to send; the bytes are kept until they are gone. To a lost rank nothing is sent."""
        if to in self.lost:
            return
        self._tidy()
        try:
            self._sending.append((to, self._world.Isend([data, self._mpi.BYTE], dest=to, tag=tag), data))
        except self._mpi.Exception as error:
            self._note_failure(error, to)

    def receive(self, seconds: float) -> Received | None:
        """The next message from anybody; None after that many seconds, or at once when a rank is newly lost."""
        deadline, wait = time.monotonic() + seconds, FIRST_WAIT
        while True:
            known = len(self.lost)
            message = Link._put_back.pop(0) if Link._put_back else self._poll()
            if message is not None or len(self.lost) > known:
                return message
            if time.monotonic() >= deadline:
                return None
            time.sleep(wait)
            wait = min(2 * wait, SENDING_WAIT if self._still_sending() else LONGEST_WAIT)

    @staticmethod
    def put_back(messages: Sequence[Received]) -> None:
        """Messages meant for this process's next link: a later `receive` gives them again, before any other."""
        Link._put_back.extend(messages)

    def flush(self, seconds: float) -> bool:
        """Wait until everything is sent but what goes to lost ranks, at most that long; whether it is."""
        deadline = time.monotonic() + seconds
        while self._still_sending() and time.monotonic() < deadline:
            time.sleep(SENDING_WAIT)
        return not self._still_sending()

    def _still_sending(self) -> bool:
        """Whether anything is on its way to a rank that is not lost."""
        self._tidy()
        return any(to not in self.lost for to, _, _ in self._sending)

    def _tidy(self) -> None:
        """Forget what is sent; the bytes for a lost rank stay, since MPI may still read them."""
        self._sending = [item for item in self._sending if item[0] in self.lost or not self._finished(item[1])]

    def introduce(self, rank: int, data: memoryview) -> None:
        """Remember which process a rank is (`identity` of that rank)."""
        host, _, process = bytes(data).decode().rpartition(" ")
        self._processes[rank] = (host, int(process))

    @staticmethod
    def identity() -> bytes:
        """Host name and process id."""
        return f"{socket.gethostname()} {os.getpid()}".encode()

    def give_up(self, rank: int) -> None:
        """Count a silent rank as lost, and end its process, so that it cannot wake up later.

        At once if it is on this host, else when this process ends.
        """
        self.lost.add(rank)
        host, process = self._processes.get(rank, ("", 0))
        if host != socket.gethostname():
            Link.beyond_reach = True
            return
        try:
            os.kill(process, 9)
        except ProcessLookupError:
            self._processes.pop(rank)

    @classmethod
    def leave(cls, code: int | None = None) -> None:
        """End this process without finalizing MPI, which would wait without end for ranks that are lost.

        Where one is beyond reach, mpirun ends the whole job, else it would wait for that one.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        code = cls.exit_code if code is None else code
        if cls.beyond_reach:
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(code)
        os._exit(code)

    def fail(self) -> None:
        """End this process after an error that nobody handled, and the others too where they cannot go on.

        With ULFM a worker leaves with success, which costs the run this rank alone. Rank 0, and workers that lost it,
        leave with `exit_code`, which mpirun returns (an abort it reports as success where a rank was lost before).
        Without ULFM, or where rank 0 is only silent, all are aborted.
        """
        code = Link.exit_code or 1
        if survives_lost_ranks() and not self.abandoned:
            self.leave(code if self.rank == 0 or 0 in self.lost else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        self._world.Abort(code)

    def _poll(self) -> Received | None:
        status = self._mpi.Status()
        try:
            if not self._world.Iprobe(source=self._mpi.ANY_SOURCE, tag=self._mpi.ANY_TAG, status=status):
                return None
            data = self._room(status.Get_count(self._mpi.BYTE))
            self._world.Recv([data, self._mpi.BYTE], source=status.Get_source(), tag=status.Get_tag())
            return Received(status.Get_source(), status.Get_tag(), data.data)
        except self._mpi.Exception as error:
            self._note_failure(error, None)
            return None

    def _room(self, size: int) -> Any:
        """An array of bytes for a message; a large one lies where an earlier one lay that nobody holds any more.

        The pages of fresh memory cost twice what the message does.
        """
        import numpy as np  # here, since the command line's help needs none of it

        if size < LARGE:
            return np.empty(size, dtype=np.uint8)
        free = [at for at in range(len(self._rooms)) if sys.getrefcount(self._rooms[at]) <= _UNHELD]
        fitting = [at for at in free if len(self._rooms[at]) >= size]
        if not fitting:
            self._rooms = [room for at, room in enumerate(self._rooms) if at not in free][1 - ROOMS :]
            self._rooms.append(np.empty(size, dtype=np.uint8))
            fitting = [len(self._rooms) - 1]
        return self._rooms[fitting[0]][:size]

    def _finished(self, request: Any) -> bool:
        try:
            return bool(request.Test())
        except self._mpi.Exception as error:
            self._note_failure(error, None)
            return True

    def _note_failure(self, error: Any, rank: int | None) -> None:
        """Learn from MPI who failed; any other error of MPI is raised."""
        failed = {getattr(self._mpi, name, None) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING")}
        if error.Get_error_class() not in failed:
            raise error
        if rank is not None:
            self.lost.add(rank)
        group, world = self._world.Get_failed(), self._world.Get_group()
        count = group.Get_size()
        if count:
            self.lost.update(self._mpi.Group.Translate_ranks(group, list(range(count)), world))
        self._world.Ack_failed()
