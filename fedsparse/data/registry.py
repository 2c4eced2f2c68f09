"""Data sets by name."""

from __future__ import annotations

import difflib
from math import ceil
from pathlib import Path

import torch

from . import digits, torchvision_sets
from .dataset import DataError, Dataset, moments
from .idx import idx_source
from .imagefolder import find_folder, read_imagefolder
from .resize import recolour, resize
from .source import Source, Split, listing, search_roots

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        idx_source("fashion-mnist", "FashionMNIST"),
        idx_source("mnist", "MNIST"),
        *torchvision_sets.SOURCES,
    )
}
FOLDER_PREFIX = "imagefolder:"


def names() -> list[str]:
    """What `load` takes as a name; PATH stands for a folder of the user's."""
    return ["digits", *sorted(SOURCES), f"{FOLDER_PREFIX}PATH"]


def load(
    name: str,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    train_limit: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Train and test set by name, both normalised by the moments of the train images that were loaded.

    Args:
        name: one of `names()`.
        root: first folder to search; FEDSPARSE_DATA and ./.data follow.
        download: fetch a missing set into the first of these folders.
        image_size: side in pixels to which all images are brought (bilinear); None keeps theirs (digits: 16).
        channels: 1 or 3; None keeps theirs.
        train_limit: keep the first ceil(train_limit / classes) train images of each class, so that classes
            stay balanced; None keeps all. The test set is always whole.

    Raises:
        DataError: unknown name, missing or corrupt data, or an argument out of range.
    """
    _check_arguments(image_size, channels, train_limit)
    if name == "digits":
        image_size = image_size or digits.IMAGE_SIZE
    train, test, classes = _read(name, search_roots(root), download, image_size, channels, train_limit)
    (train_images, train_labels), (test_images, test_labels) = (
        _shaped(split, image_size, channels) for split in (train, test)
    )
    mean, std = moments(train_images)
    return (
        Dataset(name, train_images, train_labels, classes, mean, std),
        Dataset(name, test_images, test_labels, classes, mean, std),
    )


def _read(
    name: str,
    roots: list[Path],
    download: bool,
    image_size: int | None,
    channels: int | None,
    limit: int | None,
) -> tuple[Split, Split, int]:
    if name.startswith(FOLDER_PREFIX) and name != FOLDER_PREFIX:
        return read_imagefolder(find_folder(name.removeprefix(FOLDER_PREFIX), roots), image_size, channels, limit)
    if name == "digits":
        (train, test), classes = digits.read_digits(), digits.CLASSES
    elif name in SOURCES:
        source = SOURCES[name]
        (train, test), classes = source.read(_folder(source, roots, download)), source.classes
    else:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(names())}{_nearest(name)}")
    return (train if limit is None else _first_of_each_class(train, classes, limit)), test, classes


def available(root: Path | None = None) -> dict[str, str]:
    """For each of `names()` where it was found, or how it can be had."""
    roots = search_roots(root)
    facts = {"digits": "embedded (scikit-learn)"}
    for name in sorted(SOURCES):
        folder = SOURCES[name].find(roots)
        facts[name] = f"found in {folder}" if folder else f"missing: {_how_to_get(SOURCES[name], roots)}"
    facts[f"{FOLDER_PREFIX}PATH"] = "any folder with train/<class>/* and test/<class>/* (or val/<class>/*)"
    return facts


def _check_arguments(image_size: int | None, channels: int | None, train_limit: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, not {image_size}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, not {channels}")
    if train_limit is not None and train_limit < 1:
        raise DataError(f"train_limit must be at least 1 image, not {train_limit}")


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, names(), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _how_to_get(source: Source, roots: list[Path]) -> str:
    return f"set download to true, or {source.advice} in {listing(roots)}"


def _folder(source: Source, roots: list[Path], download: bool) -> Path:
    folder = source.find(roots)
    if folder is None and download:
        try:
            source.fetch(roots[0])
        except (OSError, RuntimeError) as error:
            raise DataError(f"data set {source.name!r} could not be downloaded to {roots[0]}: {error}") from error
        folder = source.find(roots)
    if folder is None:
        raise DataError(f"data set {source.name!r} was not found in {listing(roots)}: {_how_to_get(source, roots)}")
    return folder


def _first_of_each_class(split: Split, classes: int, limit: int) -> Split:
    images, labels = split
    each = ceil(limit / classes)
    kept = torch.cat([(labels == label).nonzero().flatten()[:each] for label in range(classes)]).sort().values
    return images[kept], labels[kept]


def _shaped(split: Split, image_size: int | None, channels: int | None) -> Split:
    images, labels = split
    if image_size is not None:
        images = resize(images, image_size)
    if channels is not None:
        images = recolour(images, channels)
    return images.contiguous(), labels
