"""MNIST and Fashion-MNIST from their four idx files, gzipped or raw.

An idx file is two zero bytes, a type byte (8: uint8), the number of dimensions, each dimension as a
big-endian uint32, then the elements (LeCun et al., the MNIST database).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch

from .samples import DataError
from .source import Source, Split, first_with

CLASSES = 10
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file.

    Raises:
        DataError: unreadable, not idx of uint8 with that many dimensions, truncated, or too long.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if len(data) < header or data[:4] != magic:
        raise DataError(f"{path} is not an idx file: it starts with {data[:4].hex()}, not with {magic.hex()}")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != prod(shape):
        raise DataError(
            f"{path} is {'truncated' if len(data) - header < prod(shape) else 'too long'}: "
            f"its header promises {prod(shape)} bytes and {len(data) - header} follow"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _complete(folder: Path) -> bool:
    return all(_file(folder, stem) is not None for pair in STEMS.values() for stem in pair)


def _read_split(folder: Path, split: str) -> Split:
    image_path, label_path = (_file(folder, stem) for stem in STEMS[split])
    if image_path is None or label_path is None:
        raise DataError(f"{folder} lacks one of {' and '.join(STEMS[split])}")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if not images.size or len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise DataError(f"{label_path} holds the label {labels.max()}: labels must lie in 0..{CLASSES - 1}")
    # Copies: the arrays are read-only views of the file's bytes.
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def read_folder(folder: Path) -> tuple[Split, Split]:
    """Train and test splits, uint8 [n, 1, h, w], of the four idx files in a folder."""
    train, test = _read_split(folder, "train"), _read_split(folder, "test")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{folder} holds train images of {list(train[0].shape[2:])} pixels and test images of "
            f"{list(test[0].shape[2:])}"
        )
    return train, test


def _find(folders: Sequence[str]) -> Callable[[Sequence[Path]], Path | None]:
    return lambda roots: first_with(roots, folders, _complete)


def idx_source(name: str, torchvision_name: str) -> Source:
    """The source of a set of four idx files, by our name and torchvision's class name.

    A folder of its own is preferred to files that lie in the root itself, which could be of either set.
    """

    def fetch(root: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, torchvision_name)(root, download=True)

    folders = (
        name,
        f"{name}/raw",
        f"{torchvision_name}/raw",
        torchvision_name,
        f"{name}/{torchvision_name}/raw",
        ".",
    )
    return Source(
        name=name,
        classes=CLASSES,
        find=_find(folders),
        read=read_folder,
        fetch=fetch,
        advice=f"put its four idx files (train-images-idx3-ubyte.gz ...) into a folder {name}",
    )
