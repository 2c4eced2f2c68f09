"""CIFAR-10 and CIFAR-100 from their published binary versions.

A file is a run of records: one label byte (CIFAR-100: coarse, then fine), then 3072 bytes of pixels, the red, the green
and the blue plane of 32 x 32 (Krizhevsky, 2009). The python versions are pickles, which can run code when they are
read: they are never opened. A download fetches the binary version and checks it against the MD5 that its author
published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .samples import DataError
from .source import Source, Split, first_with

SIDE = 32
PIXELS = 3 * SIDE * SIDE
SITE = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Layout:
    """Where one of the two sets keeps what; `records` a file of train and of test, the label is byte `label`."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: tuple[int, int]
    label: int
    classes: int
    archive: str
    md5: str
    pickled: str


LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        records=(10_000, 10_000),
        label=0,
        classes=10,
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        pickled="cifar-10-batches-py",
    ),
    "cifar100": Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        records=(50_000, 10_000),
        label=1,
        classes=100,
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        pickled="cifar-100-python",
    ),
}


def read_records(path: Path, records: int, label: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [records, 3, 32, 32] and int64 [records] of one file whose records have label + 1 label bytes.

    Raises:
        DataError: the file is unreadable, of another size, or holds a label that is no class.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    width = label + 1 + PIXELS
    if len(data) != records * width:
        raise DataError(f"{path} has {len(data)} bytes, not {records} records of {width}: it is not the published file")
    table = data.reshape(records, width)
    labels = table[:, label].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{path} holds the label {labels.max()}: labels must lie in 0..{classes - 1}")
    return table[:, label + 1 :].reshape(records, 3, SIDE, SIDE), labels


def read_cifar(layout: Layout, folder: Path) -> tuple[Split, Split]:
    """Train and test splits, uint8 [n, 3, 32, 32], of a folder that has the layout's folder."""

    def split(files: tuple[str, ...], records: int) -> Split:
        parts = [read_records(folder / layout.folder / file, records, layout.label, layout.classes) for file in files]
        images, labels = (np.concatenate(column) for column in zip(*parts))
        return torch.from_numpy(images), torch.from_numpy(labels)

    return split(layout.train, layout.records[0]), split(layout.test, layout.records[1])


def _fetch(layout: Layout, folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    # The checksum is compared before anything is unpacked.
    download_and_extract_archive(f"{SITE}/{layout.archive}", str(folder), md5=layout.md5)


def cifar_source(name: str) -> Source:
    """The source of `cifar10` or `cifar100`."""
    layout = LAYOUTS[name]
    return Source(
        name=name,
        classes=layout.classes,
        find=lambda roots: first_with(
            roots, (name, name.upper(), "."), lambda folder: (folder / layout.folder).is_dir()
        ),
        read=lambda folder: read_cifar(layout, folder),
        fetch=lambda root: _fetch(layout, root / name),
        advice=f"unpack {layout.archive} (the python version in {layout.pickled} is a pickle and is not read) "
        f"into a folder {name}",
    )
