"""Folders of runs: a new one for every run, and never one that holds something already."""

from __future__ import annotations

import fcntl
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsparse.cli.errors import CommandError, disk_sentence

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """A folder made for a run; `made` are the folders that did not exist before, the outermost first.

    `old`: it was there before, with what a run that is resumed left in it.
    """

    path: Path
    made: tuple[Path, ...]
    old: bool = False

    def discard(self) -> None:
        """Remove what was made, where the run never began."""
        if self.old:
            return
        for child in self.path.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        for folder in reversed(self.made):
            if any(folder.iterdir()):
                return
            folder.rmdir()


def old_folder(path: Path) -> RunFolder:
    """Return the folder of a run that was started before; CommandError where there is none."""
    if not (path / "config.json").is_file():
        raise CommandError(f"{path} holds no config.json, so it is no run's folder")
    return RunFolder(path, (), old=True)


def going_on(folder: Path, command: str | None = None) -> str:
    """Return what goes on with a run that ended early: `resume`, or `command`.

    With finished rounds and no checkpoint nothing does.
    """
    records = folder / "rounds.jsonl"
    finished = records.exists() and b"\n" in records.read_bytes()
    if finished and not any((folder / "checkpoints").glob("*.json")):
        return "there is no checkpoint to go on from"
    return f"{command or f'`fedsparse resume {folder}`'} goes on"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder, by a lock that ends with this process however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"{folder} is in use: its run is still going on in another process") from None
        yield


def run_folder(out: Path | None, name: str, seed: int) -> RunFolder:
    """Return the folder of a single run: `out`, or the first free `runs/<name>-<seed>-<n>`."""
    if out is not None:
        return given_folder(out)
    return first_free(RUNS / f"{name}-{seed}-{n}" for n in itertools.count(1))


def comparison_folder(out: Path | None, configs: list[Path]) -> RunFolder:
    """Return the folder of a comparison: `out`, or `runs/<folder of the configs>`, numbered from 2 where taken."""
    if out is not None:
        return given_folder(out)
    name = configs[0].resolve().parent.name or "comparison"
    numbered = (RUNS / f"{name}-{n}" for n in itertools.count(2))
    return first_free(itertools.chain([RUNS / name], numbered))


def inner_folder(outer: RunFolder, name: str) -> RunFolder:
    """Return the folder of one run within that of a comparison."""
    return created(outer.path / name, exist_ok=False)


def given_folder(out: Path) -> RunFolder:
    """Return the folder that the user named; it must be new or empty, and writable."""
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out} is a file but must be a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise CommandError(f"--out {out} is not empty, and runs are never overwritten; name a new or empty folder")
    try:
        folder = created(out, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return folder
    except OSError as error:
        raise CommandError(disk_sentence(error, f"--out {out}")) from None


def first_free(candidates: Iterable[Path]) -> RunFolder:
    """Make and return the first folder of the candidates that does not exist."""
    for path in candidates:
        try:
            return created(path, exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise CommandError(disk_sentence(error, f"the folder {path} (choose another by --out)")) from None
    raise AssertionError("the candidates are endless")


def written_folder(path: Path) -> Path:
    """Make a folder that may hold something already, for files that replace those of the same name."""
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path} is a file but must be a folder")
    try:
        return created(path, exist_ok=True).path
    except OSError as error:
        raise CommandError(disk_sentence(error, f"the folder {path}")) from None


def created(path: Path, exist_ok: bool) -> RunFolder:
    """Make a folder and those above it; tell which were missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=exist_ok)
    return RunFolder(path, tuple(reversed(missing)))
