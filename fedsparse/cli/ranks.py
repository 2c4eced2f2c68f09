"""Start a run on MPI ranks: `fedsparse run CONFIG --ranks N` becomes the mpirun that belongs to what is installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from fedsparse.cli.errors import CommandError


def start_on_ranks(ranks: int, config: Path, options: list[str], threads: int) -> None:
    """Replace this process by mpirun with `ranks` ranks of the same command; returns only by CommandError."""
    mpirun = find_mpirun()
    if mpirun is None:
        raise CommandError("--ranks needs mpirun, which is not installed; pip install 'fedsparse[mpi]' brings it")
    command = [mpirun, "--with-ft", "ulfm", "--bind-to", "none", "-n", str(ranks)]
    command += [sys.executable, "-m", "fedsparse", "run", str(config), *options]
    os.execve(mpirun, command, {**os.environ, **environment(threads)})


def find_mpirun() -> str | None:
    """The mpirun beside this Python, else the one on the path."""
    return shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def environment(threads: int) -> dict[str, str]:
    """What Open MPI must be told: that more ranks than cores are meant, and, for root, that root is."""
    told = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": str(threads)}
    if os.geteuid() == 0:
        told |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return told
