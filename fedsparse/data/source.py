"""What a data set on disk is to `load`: where it may lie, how it is read, how it can be had."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]
"""uint8 images [n, c, h, w] and int64 labels [n]."""


class Splits(NamedTuple):
    """Both splits of a data set; clients: int64 [n] of the train split, or None where it has no natural clients."""

    train: Split
    test: Split
    classes: int
    clients: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """One named data set on disk.

    `find` gives the folder that holds the set, or None; `read` gives its train and test splits;
    `fetch` downloads it below a root; `advice` tells a user how to get it by hand.
    """

    name: str
    classes: int
    find: Callable[[Sequence[Path]], Path | None]
    read: Callable[[Path], tuple[Split, Split]]
    fetch: Callable[[Path], None]
    advice: str


def search_roots(root: Path | None) -> list[Path]:
    """Folders in which data sets are looked for, in this order: `root`, FEDSPARSE_DATA, ./.data."""
    named = [root, os.environ.get("FEDSPARSE_DATA") or None, Path(".data")]
    found = [Path(folder).expanduser() for folder in named if folder is not None]
    return list(dict.fromkeys(found))


def first_with(roots: Sequence[Path], folders: Sequence[str], complete: Callable[[Path], bool]) -> Path | None:
    """The first of root/folder, roots before folders, that is `complete`."""
    candidates = (root / folder for root in roots for folder in folders)
    return next((path for path in candidates if complete(path)), None)


def listing(paths: Sequence[Path]) -> str:
    """Paths for an error sentence: 'a', 'a or b', 'a, b or c'."""
    shown = [str(path) for path in paths]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def first_of_each(groups: Tensor, each: int) -> Tensor:
    """Positions of the first `each` members of every group, ascending; groups: int64 [n]."""
    order = groups.argsort(stable=True)
    sizes = groups.bincount()
    rank = torch.arange(len(groups)) - (sizes.cumsum(0) - sizes)[groups[order]]
    return order[rank < each].sort().values
