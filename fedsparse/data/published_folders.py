"""CINIC-10 and Tiny ImageNet from folders of images, laid out as they are published.

CINIC-10 (Darlow et al., 2018): train, valid and test of class folders; `valid` is left out. Tiny ImageNet (Stanford
CS231n): train/<class>/images/*, and val/images/* with the classes in val/val_annotations.txt, which serves as test,
because the published test images have no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from .imagefolder import Listed, class_names, image_files, list_split, read_listed
from .samples import DataError
from .source import Splits, first_with

ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class FolderSource:
    """One named set of image folders.

    folders: names that the set's folder may have below a root. parts: folders that it must hold. list_train, list_test:
    the files of a split, from its folder, the class names and, for train, how many of each class.
    """

    name: str
    classes: int
    folders: tuple[str, ...]
    parts: tuple[str, str]
    list_train: Callable[[Path, Sequence[str], int | None], Listed]
    list_test: Callable[[Path, Sequence[str]], Listed]
    advice: str

    def find(self, roots: Sequence[Path]) -> Path | None:
        """The folder that holds the set, or None."""
        return first_with(roots, self.folders, lambda folder: all((folder / part).is_dir() for part in self.parts))

    def read(self, folder: Path, image_size: int | None, channels: int | None, train_limit: int | None) -> Splits:
        """Both splits; in colour unless `channels` is 1, for some files are grey.

        Raises:
            DataError: another number of classes than is published, or an image that cannot serve.
        """
        names = class_names(folder / self.parts[0])
        if len(names) != self.classes:
            raise DataError(f"{folder / self.parts[0]} holds {len(names)} class folders, not {self.classes}")
        each = None if train_limit is None else ceil(train_limit / self.classes)
        train = self.list_train(folder / self.parts[0], names, each)
        test = self.list_test(folder / self.parts[1], names)
        return Splits(*read_listed(train, test, image_size, channels or 3), self.classes)


def _list_images_below(folder: Path, classes: Sequence[str], each: int | None) -> Listed:
    """Files of <class>/images."""
    files = [image_files(folder / name / "images")[:each] for name in classes]
    labels = [label for label, images in enumerate(files) for _ in images]
    return Listed(tuple(file for images in files for file in images), tuple(labels))


def _list_annotated(folder: Path, classes: Sequence[str]) -> Listed:
    """Files that `val_annotations.txt` names (file, class, box; tab-separated), sorted; else those of class folders."""
    path = folder / ANNOTATIONS
    if not path.is_file():
        return list_split(folder, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    found: list[tuple[str, int]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        # A name with a folder in it could lead out of the set.
        if name not in numbers or not file or Path(file).name != file:
            raise DataError(f"{path} holds a line that names no image and known class: {line[:80]!r}")
        found.append((file, numbers[name]))
    if not found:
        raise DataError(f"{path} is empty")
    found.sort()
    return Listed(tuple(folder / "images" / file for file, _ in found), tuple(label for _, label in found))


FOLDER_SOURCES = {
    source.name: source
    for source in (
        FolderSource(
            name="cinic10",
            classes=10,
            folders=("cinic10", "CINIC-10", "cinic-10"),
            parts=("train", "test"),
            list_train=list_split,
            list_test=list_split,
            advice="unpack CINIC-10.tar.gz into a folder cinic10",
        ),
        FolderSource(
            name="tinyimagenet",
            classes=200,
            folders=("tinyimagenet", "tiny-imagenet-200", "tinyimagenet/tiny-imagenet-200"),
            parts=("train", "val"),
            list_train=_list_images_below,
            list_test=_list_annotated,
            advice="unpack tiny-imagenet-200.zip",
        ),
    )
}
