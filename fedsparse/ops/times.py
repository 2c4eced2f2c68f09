"""Measured times of passes in a file: one a machine, version, instruction set and number of threads, or one a GPU."""

import fcntl
import json
import logging
import math
import os
import platform
import re
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Times = dict[str, dict[str, float]]
"""Milliseconds by back end (those of `_NAMES`), by the key of a pass."""

_NAMES = ({"cpu", "dense"}, {"triton", "dense"}, {"triton", "condensed", "dense"})
log = logging.getLogger("fedsparse")
_times: dict[Path, Times] = {}


@cache
def processor() -> str:
    """The processor's name, as the system has it."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", facts.read_text()) if facts.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def file_of_times(gpu: str = "") -> Path | None:
    """Where the times of the CPU, or of a GPU of that name, are kept; None where there is no home folder for it."""
    given = places()
    machine = _slug(gpu or processor())
    how = "" if gpu else f"-{torch.ops.fedsparse.isa()}-{torch.get_num_threads()}-threads"
    return _file_in(given, f"{machine}-{_version()}{how}.json")


def places() -> tuple[str | None, ...]:
    """The environment variables that say where times are kept."""
    look = os.environ.get
    return look("FEDSPARSE_CACHE"), look("XDG_CACHE_HOME"), look("HOME")


@cache
def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


@lru_cache(64)
def _file_in(given: tuple[str | None, ...], name: str) -> Path | None:
    own, caches, _ = given
    if own:
        folder = Path(own)
    elif caches:
        folder = Path(caches) / "fedsparse"
    else:
        try:
            folder = Path.home() / ".cache" / "fedsparse"
        except RuntimeError:
            return None
    return folder / name


@cache
def _version() -> str:
    return f"{metadata.version('fedsparse')}-torch-{torch.__version__}"


def known(path: Path | None) -> Times:
    """The measured times, read once a process; of a file that is not ours, none and a warning."""
    if path is None:
        return {}
    if path not in _times:
        try:
            _times[path] = _read(path)
        except FileNotFoundError:
            _times[path] = {}
        except (OSError, ValueError) as error:
            log.warning("measured times in %s are not used: %s", path, error)
            _times[path] = {}
    return _times[path]


def _read(path: Path) -> Times:
    """The times in a file; ValueError where it holds something else."""
    found = json.loads(path.read_text())
    rows = found.values() if isinstance(found, dict) else [None]
    for row in rows:
        if not isinstance(row, dict) or set(row) not in _NAMES or not all(_is_time(ms) for ms in row.values()):
            raise ValueError("it does not hold a time of each back end for every pass; delete it")
    return found


def _is_time(ms: Any) -> bool:
    return isinstance(ms, int | float) and math.isfinite(ms) and ms > 0


def keep(path: Path | None, key: str, times: dict[str, float]) -> None:
    """Add to what the file holds now; RuntimeError where it cannot be written."""
    if path is None:
        raise RuntimeError("measured times have nowhere to go: set FEDSPARSE_CACHE to a folder")
    row = {name: round(ms, 4) for name, ms in times.items()}
    known(path)[key] = row
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            everyone = (_read(path) if path.exists() else {}) | {key: row}
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(everyone, indent=0, sort_keys=True))
            fresh.replace(path)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"measured times cannot be kept in {path}: {error}") from error
