"""Images in folders: PATH/train/<class>/* and PATH/test (or val)/<class>/*."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .cache import cached
from .samples import DataError
from .source import Split, listing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class Listed:
    """The files of one split, in order, with their class numbers."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


def find_folder(path: str, roots: Sequence[Path]) -> Path:
    """The folder that `imagefolder:path` means: as given, else below the first root that has it.

    Raises:
        DataError: none of the candidates holds a folder `train` and a folder `test` or `val`.
    """
    given = Path(path).expanduser()
    candidates = [given, *([] if given.is_absolute() else [root / given for root in roots])]
    for folder in candidates:
        if (folder / "train").is_dir() and _test_folder(folder) is not None:
            return folder
    raise DataError(
        f"data set 'imagefolder:{path}' was not found: none of {listing(candidates)} holds train/<class>/ "
        "and test/<class>/ (or val/<class>/) with image files, so unpack one there or give another PATH"
    )


def _test_folder(folder: Path) -> Path | None:
    return next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)


def class_names(folder: Path) -> list[str]:
    """Names of the class folders in a split's folder, sorted: a class's number is its place."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders")
    return names


def list_split(folder: Path, classes: Sequence[str], each: int | None = None) -> Listed:
    """Image files of the classes that a split has, sorted by name, the first `each` of every class."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = folder / name
        if not members.is_dir():
            continue
        images = image_files(members)[:each]
        files += images
        labels += [label] * len(images)
    return Listed(tuple(files), tuple(labels))


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name, at least one."""
    images = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not images:
        raise DataError(f"{folder} holds no image file ({' '.join(SUFFIXES)})")
    return [folder / image for image in images]


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image: {error}") from error
    if image.mode.startswith(DEEP_MODES):
        raise DataError(f"{path} has pixels of more than 8 bits (mode {image.mode}): convert it to 8 bits first")
    return image


def decode(files: Sequence[Path], size: int, channels: int, resize: bool) -> np.ndarray:
    """uint8 [n, channels, size, size] of image files; with `resize` scaled and cropped to the centre square.

    Raises:
        DataError: a file is unreadable, or has another size and `resize` is False.
    """
    pixels = np.empty((len(files), channels, size, size), dtype=np.uint8)
    mode = "L" if channels == 1 else "RGB"
    for position, path in enumerate(files):
        image = _open(path).convert(mode)
        if image.size != (size, size):
            if not resize:
                raise DataError(
                    f"{path} has {image.width} x {image.height} pixels where {size} x {size} are expected: "
                    "set image_size to bring all images to one square size"
                )
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        array = np.asarray(image)
        pixels[position] = array if channels == 1 else array.transpose(2, 0, 1)
    return pixels


def read_imagefolder(
    folder: Path, image_size: int | None, channels: int | None, train_limit: int | None
) -> tuple[Split, Split, int]:
    """Train split, test split and the number of classes of an image folder.

    Args:
        folder: as `find_folder` gives it.
        image_size: side to which all images are brought; None keeps theirs, which must be one square size.
        channels: 1 or 3; None takes those of the first image.
        train_limit: keep the first ceil(train_limit / classes) train images of each class.

    Raises:
        DataError: no classes or images, a class only in the test, or an image that cannot serve.
    """
    train_folder, test_folder = folder / "train", _test_folder(folder)
    if test_folder is None:
        raise DataError(f"{folder} holds neither test nor val")
    classes = class_names(train_folder)
    unknown = sorted(set(class_names(test_folder)) - set(classes))
    if unknown:
        raise DataError(f"{test_folder} holds the class {unknown[0]!r}, which {train_folder} lacks")
    each = None if train_limit is None else ceil(train_limit / len(classes))
    train, test = read_listed(
        list_split(train_folder, classes, each), list_split(test_folder, classes), image_size, channels
    )
    return train, test, len(classes)


def read_listed(train: Listed, test: Listed, image_size: int | None, channels: int | None) -> tuple[Split, Split]:
    """The images of two lists of files; size and channels, where not given, are those of the first train image."""
    first = _open(train.files[0])
    size = image_size or first.height
    depth = channels or (1 if first.mode in GREY_MODES else 3)
    resize = image_size is not None
    return _read(train, size, depth, resize), _read(test, size, depth, resize)


def _read(listed: Listed, size: int, channels: int, resize: bool) -> Split:
    shape = (len(listed.files), channels, size, size)
    variant = f"{size}:{channels}:{resize}"
    pixels = cached(listed.files, shape, variant, lambda: decode(listed.files, size, channels, resize))
    return torch.from_numpy(pixels), torch.tensor(listed.labels, dtype=torch.int64)
