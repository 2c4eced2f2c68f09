"""A run folder: rounds.jsonl grows by a line a round; everything else appears whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by a temporary one in the same folder, fsync and rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in a folder, so that a rename survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, two spaces deep."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def append_line(path: Path, record: Mapping[str, Any], midway: Callable[[], None] = lambda: None) -> bytes:
    """Append one record as a line of JSON, flush it to the disk and return it; `midway` is called within the line."""
    line = (json.dumps(record) + "\n").encode()
    with path.open("ab") as file:
        file.write(line[: len(line) // 2])
        file.flush()
        midway()
        file.write(line[len(line) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    return line
