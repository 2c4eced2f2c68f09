from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsparse import data
from fedsparse.data import DataError, published_folders

Write = Callable[[Path, np.ndarray], None]
CLASSES = ("n01", "n02", "n03")


@pytest.fixture(autouse=True)
def _three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in published_folders.FOLDER_SOURCES.items():
        monkeypatch.setitem(published_folders.FOLDER_SOURCES, name, replace(source, classes=3))


def shade(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, dtype=np.uint8)


@pytest.fixture
def tiny(tmp_path: Path, write_image: Write) -> Path:
    """The layout of tiny-imagenet-200 with 3 classes, 2 train images each, and 4 annotated val images."""
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(CLASSES):
        for i in range(2):
            write_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", shade(10 * number + i))
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    lines = []
    for i, name in enumerate(("n03", "n01", "n01", "n02")):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", shade(100 + i))
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t8\t8\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    write_image(root / "test" / "images" / "test_0.JPEG", shade(255))
    return root


def test_tiny_imagenet_as_published(tiny: Path) -> None:
    train, test = data.load("tinyimagenet", root=tiny.parent)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [2, 0, 0, 1]
    assert train.images.shape == (6, 3, 8, 8)
    assert [round(float(image.float().mean())) for image in test.images] == [100, 101, 102, 103]
    assert data.available(tiny.parent)["tinyimagenet"] == f"found in {tiny}"


def test_tiny_imagenet_with_val_sorted_into_class_folders(tiny: Path, write_image: Write) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    for name in CLASSES:
        write_image(tiny / "val" / name / "0.png", shade(7))
    assert data.load("tinyimagenet", root=tiny.parent)[1].labels.tolist() == [0, 1, 2]


def test_grey_files_and_sizes_and_limits(tiny: Path, write_image: Write) -> None:
    write_image(tiny / "train" / "n01" / "images" / "n01_0.JPEG", shade(9)[..., 0])
    train, _ = data.load("tinyimagenet", root=tiny.parent, image_size=4, train_limit=3)
    assert train.images.shape == (3, 3, 4, 4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("val_0.JPEG\tn09\t0\n", "no image and known class"),
        ("../../secret.png\tn01\t0\n", "no image and known class"),
        ("val_0.JPEG\n", "no image and known class"),
        ("", "is empty"),
    ],
)
def test_bad_annotations_get_one_sentence(tiny: Path, content: str, sentence: str) -> None:
    (tiny / "val" / "val_annotations.txt").write_text(content)
    with pytest.raises(DataError, match=rf"val_annotations\.txt .*{sentence}"):
        data.load("tinyimagenet", root=tiny.parent)


@pytest.mark.parametrize("folder", ["cinic10", "CINIC-10"])
def test_cinic_as_published_leaves_valid_out(tmp_path: Path, write_image: Write, folder: str) -> None:
    for split, count in (("train", 2), ("valid", 3), ("test", 1)):
        for name in CLASSES:
            for i in range(count):
                write_image(tmp_path / folder / split / name / f"{i}.png", shade(i))
    train, test = data.load("cinic10", root=tmp_path)
    assert (len(train), len(test), train.classes) == (6, 3, 3)


def test_another_number_of_classes_is_refused(tiny: Path, write_image: Write) -> None:
    write_image(tiny / "train" / "n04" / "images" / "0.JPEG", shade(0))
    with pytest.raises(DataError, match="train holds 4 class folders, not 3"):
        data.load("tinyimagenet", root=tiny.parent)


def test_no_download_is_offered(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'cinic10' was not found in .*: unpack CINIC-10\.tar\.gz into a folder cinic10"
    ):
        data.load("cinic10", root=tmp_path, download=True)
