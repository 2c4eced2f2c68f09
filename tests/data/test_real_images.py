import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsparse import data

Find = Callable[[str], Path]


def test_fashion_mnist_is_the_published_set(real_data: Find) -> None:
    """Counts, the first labels and the moments 0.2860, 0.3530 that are commonly quoted for it."""
    train, test = data.load("fashion-mnist", root=real_data("fashion-mnist").parent)
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert train.mean == pytest.approx((0.2860,), abs=5e-5)
    assert train.std == pytest.approx((0.3530,), abs=5e-5)


def test_fashion_mnist_stands_upright(real_data: Find) -> None:
    """Trousers (1) have one part at the waist and two legs: the middle column is bright above, dark below."""
    train, _ = data.load("fashion-mnist", root=real_data("fashion-mnist").parent, train_limit=3000)
    trousers = train.images[train.labels == 1].float().mean(0)[0]
    assert trousers[2:8, 13:15].mean() > 1.5 * trousers[20:26, 13:15].mean()


def test_cifar10_jpeg_tar_as_an_image_folder(real_data: Find, tmp_path: Path) -> None:
    """The first images of the first two classes in the archive, against a decoding of each file by itself."""
    wanted = [f"train/{name}/{number:04d}.jpg" for name in ("airplane", "automobile") for number in range(3)]
    with tarfile.open(real_data("cifar10-jpeg.tar.xz")) as archive:
        # The archive is sorted: stopping at the last wanted file spares unpacking most of it.
        for member in archive:
            if member.name in wanted:
                archive.extract(member, tmp_path, filter="data")
            if member.name == wanted[-1]:
                break
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    train, test = data.load(f"imagefolder:{tmp_path}")
    assert train.images.shape == test.images.shape == (6, 3, 32, 32)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for path, image in zip(wanted, train.images.numpy()):
        assert np.array_equal(image.transpose(1, 2, 0), np.asarray(Image.open(tmp_path / path)))
