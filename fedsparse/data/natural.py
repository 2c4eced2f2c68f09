"""Images of natural clients, as FEMNIST has writers: `clientfolder:PATH` and `npz:PATH`.

A folder holds train/<client>/<class>/* and test/<client>/<class>/*. An .npz file holds arrays `images` (uint8 [n, h, w]
or [n, h, w, 1 or 3]), `labels` (integers from 0, [n]) and `clients` (integers or text, [n]), and may hold `test_images`
and `test_labels`; without them the last tenth of each client's images, rounded down, is the test.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .imagefolder import Listed, class_names, list_split, read_listed
from .samples import DataError
from .source import Split, Splits, first_of_each, listing

TEST_SHARE = 0.1


def find(prefix: str, path: str, roots: Sequence[Path]) -> Path:
    """The file or folder that `prefix:path` means: as given, else below the first root that has it.

    Raises:
        DataError: there is none.
    """
    given = Path(path).expanduser()
    candidates = [given, *([] if given.is_absolute() else [root / given for root in roots])]
    for candidate in candidates:
        if candidate.is_file() if prefix == "npz" else (candidate / "train").is_dir():
            return candidate
    what = "an .npz file" if prefix == "npz" else "a folder that holds train/<client>/<class>/"
    raise DataError(f"data set '{prefix}:{path}' was not found: none of {listing(candidates)} is {what}")


def read_clientfolder(folder: Path, image_size: int | None, channels: int | None, train_limit: int | None) -> Splits:
    """Both splits of a folder; a client's number is the place of its name among the train clients, sorted.

    With `train_limit` the first ceil(train_limit / clients) images of each client, class by class, are kept.

    Raises:
        DataError: a folder without clients, classes or images, a class only in the test, or an image that cannot serve.
    """
    train, test = folder / "train", folder / "test"
    if not test.is_dir():
        raise DataError(f"{folder} holds no folder test/<client>/<class>/")
    clients = class_names(train)
    classes = sorted({name for client in clients for name in class_names(train / client)})
    each = None if train_limit is None else ceil(train_limit / len(clients))
    parts = [list_split(train / client, classes) for client in clients]
    parts = [Listed(part.files[:each], part.labels[:each]) for part in parts]
    tests = []
    for client in class_names(test):
        unknown = sorted(set(class_names(test / client)) - set(classes))
        if unknown:
            raise DataError(f"{test / client} holds the class {unknown[0]!r}, which no train client has")
        tests.append(list_split(test / client, classes))
    owners = torch.arange(len(clients)).repeat_interleave(torch.tensor([len(part.files) for part in parts]))
    return Splits(*read_listed(_joined(parts), _joined(tests), image_size, channels), len(classes), owners)


def _joined(parts: Sequence[Listed]) -> Listed:
    return Listed(
        tuple(file for part in parts for file in part.files), tuple(label for part in parts for label in part.labels)
    )


def read_npz(path: Path, train_limit: int | None) -> Splits:
    """Both splits of an .npz file; clients are numbered in the order of their sorted values.

    With `train_limit` the first ceil(train_limit / clients) images of each client are kept.

    Raises:
        DataError: the file is unreadable, lacks an array, holds objects, or its arrays do not fit together.
    """
    arrays = _arrays(path)
    for name in ("images", "labels", "clients"):
        if name not in arrays:
            raise DataError(f"{path} lacks the array {name!r}; it holds {', '.join(sorted(arrays)) or 'none'}")
    images, labels = _split(path, arrays, "")
    if arrays["clients"].shape != (len(labels),) or arrays["clients"].dtype.kind not in "iuUS":
        raise DataError(f"{path}: clients must be integers or text of shape [{len(labels)}]")
    clients = torch.from_numpy(np.unique(arrays["clients"], return_inverse=True)[1].astype(np.int64))
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise DataError(f"{path} holds only one of test_images and test_labels")
    if "test_images" in arrays:
        test = _split(path, arrays, "test_")
        if test[0].shape[1:] != images.shape[1:]:
            raise DataError(f"{path}: images are {list(images.shape[1:])} and test_images {list(test[0].shape[1:])}")
    else:
        held_out = _last_of_each(clients)
        test = images[held_out], labels[held_out]
        images, labels, clients = images[~held_out], labels[~held_out], clients[~held_out]
    if not len(test[1]):
        raise DataError(f"{path}: no client has the ten images of which one would be the test; give test_images")
    classes = 1 + int(torch.cat([labels, test[1]]).max())
    if train_limit is not None:
        kept = first_of_each(clients, ceil(train_limit / (1 + int(clients.max()))))
        images, labels, clients = images[kept], labels[kept], clients[kept]
    return Splits((images, labels), test, classes, clients)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is not an .npz file but a single array")
        with stored:
            return {name: stored[name] for name in stored.files}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _split(path: Path, arrays: dict[str, np.ndarray], prefix: str) -> Split:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise DataError(
            f"{path}: {prefix}images must be uint8 of shape [n, h, w] or [n, h, w, 1 or 3], "
            f"not {images.dtype} of shape {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or labels.min() < 0:
        raise DataError(f"{path}: {prefix}labels must be integers from 0, of shape [{len(images)}]")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _last_of_each(clients: Tensor) -> Tensor:
    """bool [n]: the last tenth of each client's samples."""
    sizes = clients.bincount()
    order = clients.argsort(stable=True)
    rank = torch.arange(len(clients)) - (sizes.cumsum(0) - sizes)[clients[order]]
    kept = sizes - (sizes * TEST_SHARE).long()
    held_out = torch.zeros(len(clients), dtype=torch.bool)
    held_out[order] = rank >= kept[clients[order]]
    return held_out
