"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from math import ceil
from pathlib import Path

from . import digits
from .cifar import cifar_source
from .dataset import Dataset, moments
from .idx import idx_source
from .imagefolder import find_folder, read_imagefolder
from .natural import find, read_clientfolder, read_npz
from .published_folders import FOLDER_SOURCES, FolderSource
from .resize import recolour, resize
from .samples import DataError
from .source import Source, Split, Splits, first_of_each, listing, search_roots
from .svhn import svhn_source
from .text import Text, find_text, read_text

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        idx_source("fashion-mnist", "FashionMNIST"),
        idx_source("mnist", "MNIST"),
        cifar_source("cifar10"),
        cifar_source("cifar100"),
        svhn_source(),
    )
}
PATHS = {
    "clientfolder": "images of natural clients: any folder with train/<client>/<class>/* and test/<client>/<class>/*",
    "imagefolder": "any folder with train/<class>/* and test/<class>/* (or val/<class>/*)",
    "npz": "images of natural clients: any .npz file with arrays images, labels and clients",
    "text": "any UTF-8 text file, or folder of .txt files; each file is a natural client",
}


def names() -> list[str]:
    """What `load` takes as a name; PATH stands for a file or folder of the user's."""
    return ["digits", *sorted([*SOURCES, *FOLDER_SOURCES]), *(f"{prefix}:PATH" for prefix in PATHS)]


def known(name: str) -> bool:
    """Whether `load` takes the name; whether the data are there is another matter."""
    prefix, colon, path = name.partition(":")
    return bool(path) and prefix in PATHS if colon else name in names()


def is_text(name: str) -> bool:
    """Whether the name means text and not images."""
    return name.startswith("text:")


def load(
    name: str,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    train_limit: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Train and test images by name, both normalised by the moments of the train images that were loaded.

    Args:
        name: one of `names()`, but no text.
        root: first folder to search; FEDSPARSE_DATA and ./.data follow.
        download: fetch a missing set into the first of these folders.
        image_size: side in pixels to which all images are brought (bilinear); None keeps theirs (digits: 16).
        channels: 1 or 3; None keeps theirs.
        train_limit: keep the first ceil(train_limit / classes) train images of each class, so that classes
            stay balanced, or as many of each natural client; None keeps all. The test set is always whole.

    Raises:
        DataError: unknown name, missing or corrupt data, or an argument out of range.
    """
    _check_arguments(image_size, channels, train_limit)
    if is_text(name):
        raise DataError(f"data set {name!r} is text and not images: use load_text")
    if name == "digits":
        image_size = image_size or digits.IMAGE_SIZE
    train, test, classes, clients = _read(name, search_roots(root), download, image_size, channels, train_limit)
    (train_images, train_labels), (test_images, test_labels) = (
        _shaped(split, image_size, channels) for split in (train, test)
    )
    mean, std = moments(train_images)
    return (
        Dataset(name, train_images, train_labels, classes, mean, std, clients),
        Dataset(name, test_images, test_labels, classes, mean, std),
    )


def load_text(
    name: str,
    root: Path | None = None,
    context: int | None = None,
    vocab: int | None = None,
    train_limit: int | None = None,
) -> tuple[Text, Text]:
    """Train and test text of `text:PATH`; see `fedsparse.data.text` for what a sample is.

    Args:
        name: `text:` and a path, sought as given, then below `root`, FEDSPARSE_DATA and ./.data.
        root: first folder to search.
        context: tokens of a sample; None means 64.
        vocab: byte-pair encoding of at most so many tokens, at least 257; None makes one token a character.
        train_limit: keep the first ceil(train_limit / files) train samples of each file.

    Raises:
        DataError: missing or unreadable text, too little of it, or an argument out of range.
    """
    _check_arguments(None, None, train_limit)
    if not (is_text(name) and known(name)):
        raise DataError(f"data set {name!r} is not text: give text:PATH")
    files = find_text(name.partition(":")[2], search_roots(root))
    return read_text(name, files, context, vocab, train_limit)


def _read(
    name: str,
    roots: list[Path],
    download: bool,
    image_size: int | None,
    channels: int | None,
    limit: int | None,
) -> Splits:
    if not known(name):
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(names())}{_nearest(name)}")
    prefix, _, path = name.partition(":")
    if prefix == "imagefolder":
        return Splits(*read_imagefolder(find_folder(path, roots), image_size, channels, limit))
    if prefix == "clientfolder":
        return read_clientfolder(find(prefix, path, roots), image_size, channels, limit)
    if prefix == "npz":
        return read_npz(find(prefix, path, roots), limit)
    if name in FOLDER_SOURCES:
        folders = FOLDER_SOURCES[name]
        return folders.read(_folder(folders, roots, download), image_size, channels, limit)
    if name == "digits":
        (train, test), classes = digits.read_digits(), digits.CLASSES
    else:
        source = SOURCES[name]
        (train, test), classes = source.read(_folder(source, roots, download)), source.classes
    return Splits(train if limit is None else _first_of_each_class(train, classes, limit), test, classes)


def available(root: Path | None = None) -> dict[str, str]:
    """For each of `names()` where it was found, or how it can be had."""
    roots = search_roots(root)
    facts = {"digits": "embedded (scikit-learn)"}
    sources: dict[str, Source | FolderSource] = {**SOURCES, **FOLDER_SOURCES}
    for name in sorted(sources):
        folder = sources[name].find(roots)
        facts[name] = f"found in {folder}" if folder else f"missing: {_how_to_get(sources[name], roots)}"
    return facts | {f"{prefix}:PATH": about for prefix, about in PATHS.items()}


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


def _how_to_get(source: Source | FolderSource, roots: list[Path]) -> str:
    automatic = "set download to true, or " if _fetcher(source) else ""
    return f"{automatic}{source.advice} in {listing(roots)}"


def _fetcher(source: Source | FolderSource) -> Callable[[Path], None] | None:
    return source.fetch if isinstance(source, Source) else None


def _folder(source: Source | FolderSource, roots: list[Path], download: bool) -> Path:
    folder, fetch = source.find(roots), _fetcher(source)
    if folder is None and download and fetch:
        try:
            fetch(roots[0])
        except (OSError, RuntimeError) as error:
            raise DataError(f"data set {source.name!r} could not be downloaded to {roots[0]}: {error}") from error
        folder = source.find(roots)
    if folder is None:
        raise DataError(f"data set {source.name!r} was not found in {listing(roots)}: {_how_to_get(source, roots)}")
    return folder


def _first_of_each_class(split: Split, classes: int, limit: int) -> Split:
    images, labels = split
    kept = first_of_each(labels, ceil(limit / classes))
    return images[kept], labels[kept]


def _shaped(split: Split, image_size: int | None, channels: int | None) -> Split:
    images, labels = split
    if image_size is not None:
        images = resize(images, image_size)
    if channels is not None:
        images = recolour(images, channels)
    return images.contiguous(), labels
