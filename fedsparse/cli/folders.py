"""Folders of runs: a new one for every run, and never one that holds something already."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedsparse.cli.errors import CommandError, disk_sentence

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """A folder made for a run; `made` are the folders that did not exist before, the outermost first."""

    path: Path
    made: tuple[Path, ...]

    def discard(self) -> None:
        """Remove what was made, where the run never began."""
        for child in self.path.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        for folder in reversed(self.made):
            if any(folder.iterdir()):
                return
            folder.rmdir()


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


def created(path: Path, exist_ok: bool) -> RunFolder:
    """Make a folder and those above it; tell which were missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=exist_ok)
    return RunFolder(path, tuple(reversed(missing)))
