"""The command `fedsparse`.

Exit codes: 0 complete; 2 bad input, told in one sentence before any work; 3 stopped because workers were lost, a quorum
was missed or code of the run called `sys.exit`, 130 interrupted: both with the rounds so far kept, and resumable; 1 for
any other failure.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Threads that wait give their core away after microseconds, or a second busy program makes training tenfold slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from fedsparse.comm.mpi import HALT, Link, world_rank, world_size

    if world_size() > 1:  # at once: unheard, the signal would end the process
        signal.signal(HALT, signal.SIG_IGN if world_rank() else signal.default_int_handler)
    Link.exit_code = code_of(arguments)
    return Link.exit_code


def code_of(arguments: Sequence[str] | None) -> int:
    """Run the command line; what goes wrong is told in one sentence."""
    from typer import Abort, TyperException

    from fedsparse.cli.commands import app
    from fedsparse.cli.errors import INTERRUPTED, CommandError, as_failure

    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="fedsparse", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return told(error.format_message().replace("Value error, ", ""), 2)
    except CommandError as error:
        return told(str(error), error.code)
    except (KeyboardInterrupt, Abort):
        return told("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        failure = as_failure(error)
        if failure is None:
            raise
        return told(str(failure), failure.code)


def told(sentence: str, code: int) -> int:
    """Print one sentence as an error and return the exit code."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return code
