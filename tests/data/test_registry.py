import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from fedsparse import data
from fedsparse.data import DataError


def test_names_are_what_available_describes() -> None:
    assert list(data.available()) == data.names()
    assert set(data.names()) >= {"digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "svhn"}


def test_available_says_where_or_how(tmp_path: Path, write_idx_set: Callable[..., object]) -> None:
    write_idx_set(tmp_path / "mnist")
    facts = data.available(tmp_path)
    assert facts["mnist"] == f"found in {tmp_path / 'mnist'}"
    assert "embedded" in facts["digits"]
    for name in ("fashion-mnist", "cifar10", "cifar100", "svhn"):
        assert facts[name].startswith("missing: set download to true, or ")
        assert str(tmp_path) in facts[name]
    for name in ("cinic10", "tinyimagenet"):
        assert facts[name].startswith("missing: unpack ")
        assert str(tmp_path) in facts[name]


def test_an_unknown_name_gets_the_choices_and_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        data.load("fashion_mnist")
    sentence = str(caught.value)
    assert "did you mean 'fashion-mnist'?" in sentence
    assert all(name in sentence for name in data.names())


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"image_size": 0}, "image_size"),
        ({"channels": 2}, "channels"),
        ({"train_limit": 0}, "train_limit"),
        ({"train_limit": -5}, "train_limit"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(DataError, match=f"^{field} must be .* not {arguments[field]}$"):
        data.load("digits", **arguments)


def test_digits_split_is_fixed_and_stratified() -> None:
    """Of the 1,797 a fifth of each class, rounded down, is test: 355; the digest pins which ones."""
    train, test = data.load("digits", image_size=8)
    assert (len(train), len(test)) == (1442, 355)
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert share.min() > 0.19
    assert share.max() <= 0.2
    digest = hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert digest == "fd64b41f0f7be26e481b6e4730226d17d03ca4a7364ee2984b4afc825b559e69"


@pytest.mark.parametrize(("size", "channels"), [(None, None), (28, None), (16, 3), (32, 3)])
def test_digits_come_in_the_asked_shape(size: int | None, channels: int | None) -> None:
    train, _ = data.load("digits", image_size=size, channels=channels)
    assert train.images.dtype == torch.uint8
    assert train.images.shape == (1442, channels or 1, size or 16, size or 16)
    assert int(train.images.max()) == 255
    images, _ = train.batch(torch.arange(1442))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(channels or 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(channels or 1), atol=1e-4, rtol=0)


def test_digits_can_be_told_apart() -> None:
    """Nearest class mean gets about 90 % on digits: images and labels belong together in both splits."""
    train, test = data.load("digits")
    images, labels = train.batch(torch.arange(len(train)))
    means = torch.stack([images[labels == label].mean(0).flatten() for label in range(10)])
    queries, truth = test.batch(torch.arange(len(test)))
    guess = torch.cdist(queries.flatten(1), means).argmin(1)
    assert float((guess == truth).float().mean()) > 0.85


def test_digits_limit_is_balanced() -> None:
    train, test = data.load("digits", train_limit=100)
    assert torch.bincount(train.labels).tolist() == [10] * 10
    assert len(test) == 355


def test_svhn_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    counts = {"train": 4, "test": 3}

    def stored(root: Path, split: str) -> SimpleNamespace:
        return SimpleNamespace(data=pixels[: counts[split]], labels=np.array([9, 0, 1, 2])[: counts[split]])

    monkeypatch.setattr(torchvision.datasets, "SVHN", stored)
    for split in counts:
        (tmp_path / f"{split}_32x32.mat").touch()
    train, test = data.load("svhn", root=tmp_path)
    assert (len(train), len(test)) == (4, 3)
    assert np.array_equal(train.images.numpy(), pixels)


def test_svhn_files_that_are_not_the_published_ones_are_never_parsed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / "svhn" / f"{split}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not the published file")
    with pytest.raises(DataError, match="svhn in .* is incomplete or corrupt"):
        data.load("svhn", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("digits", True),
        ("imagefolder:x", True),
        ("text:a:b", True),
        ("npz:x.npz", True),
        ("npz:", False),
        ("npz", False),
        ("digits:x", False),
        ("imagefolder:PATH", True),
        ("tinyimagenet", True),
        ("birds", False),
    ],
)
def test_known_names(name: str, is_known: bool) -> None:
    assert data.known(name) == is_known
