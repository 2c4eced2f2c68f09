"""What a command ends with when it does not complete: a sentence and an exit code."""

from __future__ import annotations

import errno

from fedsparse.config import ConfigError
from fedsparse.report.records import RecordError

FAILED, BAD_INPUT, STOPPED, INTERRUPTED = 1, 2, 3, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class CommandError(Exception):
    """One sentence for the user, and the exit code that goes with it."""

    def __init__(self, sentence: str, code: int = BAD_INPUT) -> None:
        super().__init__(sentence)
        self.code = code


def as_failure(error: Exception) -> CommandError | None:
    """Return the sentence for errors that are the input's or the disk's; None for those that are our own mistakes."""
    if isinstance(error, ConfigError | RecordError):
        return CommandError(str(error))
    if type(error).__name__ in ("CheckpointError", "BudgetError"):
        return CommandError(str(error))
    if type(error).__name__ in ("RunError", "StoppedError"):
        return CommandError(str(error), STOPPED if type(error).__name__ == "StoppedError" else FAILED)
    if isinstance(error, OSError) and error.errno in DISK:
        return CommandError(disk_sentence(error, str(error.filename or "the disk")), FAILED)
    return None


def disk_sentence(error: OSError, where: str) -> str:
    """Return in one sentence that, and why, a place cannot be written."""
    why = "the disk is full" if error.errno in FULL else (error.strerror or str(error)).lower()
    return f"{where} cannot be written: {why}"
