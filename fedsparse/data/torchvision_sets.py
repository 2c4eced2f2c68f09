"""CIFAR-10, CIFAR-100 and SVHN in the layouts that torchvision reads and downloads.

torchvision compares every file with its published MD5 before it opens it, also without a download:
nothing but the published bytes is ever parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .dataset import DataError
from .source import Source, Split, first_with


def _split(images: np.ndarray, labels: Sequence[int] | np.ndarray) -> Split:
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.array(labels, dtype=np.int64))


def _read_cifar(kind: str, folder: Path) -> tuple[Split, Split]:
    import torchvision

    def split(train: bool) -> Split:
        stored = getattr(torchvision.datasets, kind)(folder, train=train)
        return _split(stored.data.transpose(0, 3, 1, 2), stored.targets)

    return split(True), split(False)


def _read_svhn(folder: Path) -> tuple[Split, Split]:
    import torchvision

    def split(name: str) -> Split:
        stored = torchvision.datasets.SVHN(folder, split=name)
        return _split(stored.data, stored.labels)

    return split("train"), split("test")


def _fetch(kind: str, folder: Path) -> None:
    import torchvision

    if kind == "SVHN":
        for split in ("train", "test"):
            torchvision.datasets.SVHN(folder, split=split, download=True)
    else:
        getattr(torchvision.datasets, kind)(folder, download=True)


def _source(name: str, kind: str, classes: int, marks: Sequence[str], advice: str) -> Source:
    reader: Callable[[Path], tuple[Split, Split]] = (
        _read_svhn if kind == "SVHN" else lambda folder: _read_cifar(kind, folder)
    )

    def read(folder: Path) -> tuple[Split, Split]:
        try:
            return reader(folder)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{name} in {folder} is incomplete or corrupt: {error}") from error

    return Source(
        name=name,
        classes=classes,
        find=lambda roots: first_with(
            roots, (name, kind, "."), lambda folder: all((folder / mark).exists() for mark in marks)
        ),
        read=read,
        fetch=lambda root: _fetch(kind, root / name),
        advice=advice,
    )


SOURCES = (
    _source(
        "cifar10",
        "CIFAR10",
        10,
        ["cifar-10-batches-py"],
        "unpack cifar-10-python.tar.gz into a folder cifar10",
    ),
    _source(
        "cifar100",
        "CIFAR100",
        100,
        ["cifar-100-python"],
        "unpack cifar-100-python.tar.gz into a folder cifar100",
    ),
    _source(
        "svhn",
        "SVHN",
        10,
        ["train_32x32.mat", "test_32x32.mat"],
        "put train_32x32.mat and test_32x32.mat into a folder svhn",
    ),
)
