"""SVHN (cropped digits) from its two published MATLAB files.

torchvision reads and downloads them and compares each file with its published MD5 before it opens it; the format is
MATLAB's, not a pickle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .samples import DataError
from .source import Source, Split, first_with

NAME = "svhn"
CLASSES = 10
SPLITS = ("train", "test")


def read_svhn(folder: Path) -> tuple[Split, Split]:
    """Train and test splits, uint8 [n, 3, 32, 32].

    Raises:
        DataError: a file is missing, or is not the published one.
    """
    import torchvision

    def split(name: str) -> Split:
        stored = torchvision.datasets.SVHN(folder, split=name)
        images, labels = np.ascontiguousarray(stored.data), np.array(stored.labels, dtype=np.int64)
        return torch.from_numpy(images), torch.from_numpy(labels)

    try:
        return split("train"), split("test")
    except (RuntimeError, OSError) as error:
        raise DataError(f"{NAME} in {folder} is incomplete or corrupt: {error}") from error


def _fetch(root: Path) -> None:
    import torchvision

    for split in SPLITS:
        torchvision.datasets.SVHN(root / NAME, split=split, download=True)


def svhn_source() -> Source:
    """The source of `svhn`."""
    marks = [f"{split}_32x32.mat" for split in SPLITS]
    return Source(
        name=NAME,
        classes=CLASSES,
        find=lambda roots: first_with(
            roots, (NAME, "SVHN", "."), lambda folder: all((folder / mark).exists() for mark in marks)
        ),
        read=read_svhn,
        fetch=_fetch,
        advice=f"put {' and '.join(marks)} into a folder {NAME}",
    )
