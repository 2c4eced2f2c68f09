"""Start a run on MPI ranks: `fedsparse run CONFIG --ranks N` becomes the mpirun that belongs to what is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from fedsparse.cli.errors import BAD_INPUT, FAILED, INTERRUPTED, STOPPED, CommandError
from fedsparse.cli.folders import RunFolder, going_on
from fedsparse.cli.launch import began
from fedsparse.cli.options import Format
from fedsparse.comm.mpi import HALT
from fedsparse.report.records import read_result

PROGRAM = (sys.executable, "-m", "fedsparse")
OURS = (FAILED, BAD_INPUT, STOPPED, INTERRUPTED)


def run_on_ranks(ranks: int, hostfile: Path | None, words: list[str], folder: RunFolder, threads: int) -> int:
    """Run a command of ours on `ranks` ranks and return its exit code.

    Success is believed only where the result was written. Where MPI ended the job because a rank was lost, the exit
    code is STOPPED and the sentence says how to go on.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        folder.discard()
        raise CommandError("--ranks needs mpirun, which is not installed; pip install 'fedsparse[mpi]' brings it")
    command = [mpirun, *flags(mpirun, hostfile, threads), "-n", str(ranks)]
    command += [*PROGRAM, *words]
    code, interrupted = supervise(command, {**os.environ, **environment(threads)})
    result = read_result(folder.path / "result.json")
    if code == 0 and result is not None:
        return 0
    if interrupted:
        if result is not None and result["status"] == "interrupted":
            return INTERRUPTED
        if not began(folder.path):
            folder.discard()
            raise CommandError("interrupted before the run began; nothing was written", INTERRUPTED)
        raise CommandError(f"interrupted; {going_on(folder.path)}", INTERRUPTED)
    if code in OURS:
        if code == BAD_INPUT:
            folder.discard()
        return code
    raise CommandError(
        f"MPI ended the run (exit code {code}) because a rank was lost; its rounds so far are kept, and "
        f"{going_on(folder.path)}",
        STOPPED,
    )


def options_again(
    overrides: list[str] | None, out: Path | None, seed: int | None, data_dir: Path | None, quiet: bool, format: Format
) -> list[str]:
    """Return the options of `run` as they would be typed."""
    options = [word for override in overrides or [] for word in ("--set", override)]
    for name, value in (("--out", out), ("--seed", seed), ("--data-dir", data_dir)):
        options += [] if value is None else [name, str(value)]
    return [*options, *(["--quiet"] if quiet else []), "--format", format.value]


def supervise(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run mpirun to its end; its exit code, and whether Ctrl-C or SIGTERM came meanwhile.

    The first has rank 0 end the run with what is done; a second one ends all ranks at once. mpirun has a process group
    of its own, so that the terminal's Ctrl-C comes to us alone.
    """
    signals: list[int] = []
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0) as process:

        def pass_on(number: int, _: object) -> None:
            signals.append(number)
            process.send_signal(HALT if len(signals) == 1 else signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return process.wait(), bool(signals)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def find_mpirun() -> str | None:
    """The mpirun beside this Python, else the one on the path."""
    return shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def flags(mpirun: str, hostfile: Path | None, threads: int) -> list[str]:
    """What this mpirun must be told: to survive lost ranks where it can, to bind none, and where the hosts are.

    Open MPI gives other hosts no variable but its own unless it is named; MPICH gives them all.
    """
    told = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" in told or "PRRTE" in told:
        found = ["--with-ft", "ulfm", "--bind-to", "none"]
        ours = [name for name in os.environ if name.startswith("FEDSPARSE_") or name == "PYTHONPATH"]
        hosts = [word for name in (*environment(threads), *ours) for word in ("-x", name)]
        return found if hostfile is None else [*found, "--hostfile", str(hostfile), *hosts]
    return ["-bind-to", "none"] if hostfile is None else ["-bind-to", "none", "-f", str(hostfile)]


def environment(threads: int) -> dict[str, str]:
    """What Open MPI must be told: that more ranks than cores are meant, and, for root, that root is."""
    told = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": str(threads)}
    if os.geteuid() == 0:
        told |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return told
