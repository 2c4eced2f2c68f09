import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsparse import data
from fedsparse.data import DataError
from fedsparse.data.registry import SOURCES

Writer = Callable[..., dict[str, np.ndarray]]
TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist/MNIST/raw"),
    ],
)
def test_files_are_found_and_read(tmp_path: Path, write_idx_set: Writer, name: str, folder: str, packed: bool) -> None:
    arrays = write_idx_set(tmp_path / folder, packed)
    train, test = data.load(name, root=tmp_path)
    assert (len(train), len(test), train.classes, train.channels, train.image_size) == (30, 20, 10, 1, 6)
    assert np.array_equal(train.images[:, 0].numpy(), arrays[TRAIN_IMAGES])
    assert np.array_equal(test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert train.labels.tolist() == arrays[TRAIN_LABELS].tolist()
    assert train.labels.dtype == torch.int64
    assert (train.mean, train.std) == (test.mean, test.std)


def test_its_own_folder_comes_before_files_in_the_root(tmp_path: Path, write_idx_set: Writer) -> None:
    write_idx_set(tmp_path, seed=1)
    own = write_idx_set(tmp_path / "mnist", seed=2)
    train, _ = data.load("mnist", root=tmp_path)
    assert np.array_equal(train.images[:, 0].numpy(), own[TRAIN_IMAGES])


def test_roots_are_searched_in_order(tmp_path: Path, write_idx_set: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPARSE_DATA", str(tmp_path / "env"))
    for count, folder in ((10, ".data"), (20, tmp_path / "env"), (30, tmp_path / "given")):
        write_idx_set(Path(folder) / "mnist", train=count)
        assert len(data.load("mnist", root=tmp_path / "given")[0]) == count


def test_a_missing_set_names_itself_the_folders_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPARSE_DATA", "/nowhere")
    with pytest.raises(DataError) as caught:
        data.load("fashion-mnist", root=tmp_path)
    sentence = str(caught.value)
    for part in ("'fashion-mnist'", str(tmp_path), "/nowhere", ".data", "download", TRAIN_IMAGES):
        assert part in sentence
    assert "\n" not in sentence


def test_three_of_four_files_are_not_a_set(tmp_path: Path, write_idx_set: Writer) -> None:
    write_idx_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="'mnist' was not found"):
        data.load("mnist", root=tmp_path)


def damage_magic(content: bytes) -> bytes:
    return b"\x00\x00\x0d" + content[3:]


def damage_rank(content: bytes) -> bytes:
    return content[:3] + b"\x02" + content[4:]


def truncate(content: bytes) -> bytes:
    return content[:-1]


def lengthen(content: bytes) -> bytes:
    return content + b"\x00"


def huge_count(content: bytes) -> bytes:
    return content[:4] + struct.pack(">I", 2**32 - 1) + content[8:]


def empty(content: bytes) -> bytes:
    return b""


def header_only(content: bytes) -> bytes:
    return content[:6]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_magic, "is not an idx file"),
        (damage_rank, "is not an idx file"),
        (empty, "is not an idx file"),
        (header_only, "is not an idx file"),
        (truncate, r"is truncated: its header promises 1080 bytes and 1079 follow"),
        (huge_count, "is truncated: its header promises 154618822620 bytes"),
        (lengthen, r"is too long: its header promises 1080 bytes and 1081 follow"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, write_idx_set: Writer, packed: bool, damage: Callable[[bytes], bytes], sentence: str
) -> None:
    write_idx_set(tmp_path, packed)
    path = tmp_path / (TRAIN_IMAGES + (".gz" if packed else ""))
    content = path.read_bytes()
    path.write_bytes(gzip.compress(damage(gzip.decompress(content))) if packed else damage(content))
    with pytest.raises(DataError, match=sentence) as caught:
        data.load("mnist", root=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage", [truncate, lambda c: c[: len(c) // 2], lambda c: b"no gzip", lambda c: c[:40] + bytes(20) + c[60:]]
)
def test_a_damaged_gzip_stream_is_named(
    tmp_path: Path, write_idx_set: Writer, damage: Callable[[bytes], bytes]
) -> None:
    write_idx_set(tmp_path)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES}.gz cannot be read"):
        data.load("mnist", root=tmp_path)


def replace_labels(folder: Path, labels: list[int]) -> None:
    header = bytes((0, 0, 8, 1)) + struct.pack(">I", len(labels))
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(header + bytes(labels)))


def test_images_and_labels_must_match_in_number(tmp_path: Path, write_idx_set: Writer) -> None:
    write_idx_set(tmp_path)
    replace_labels(tmp_path, [0] * 29)
    with pytest.raises(DataError, match=r"30 images and .* 29 labels"):
        data.load("mnist", root=tmp_path)


def test_labels_must_be_digits(tmp_path: Path, write_idx_set: Writer) -> None:
    write_idx_set(tmp_path)
    replace_labels(tmp_path, [0] * 29 + [10])
    with pytest.raises(DataError, match="the label 10"):
        data.load("mnist", root=tmp_path)


def test_train_limit_keeps_the_first_of_each_class_in_file_order(tmp_path: Path, write_idx_set: Writer) -> None:
    """ceil(15 / 10) = 2 of each class; labels cycle 0..9, so these are the first 20 of 30. The test stays whole."""
    arrays = write_idx_set(tmp_path / "mnist")
    train, test = data.load("mnist", root=tmp_path, train_limit=15)
    assert np.array_equal(train.images[:, 0].numpy(), arrays[TRAIN_IMAGES][:20])
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert len(test) == 20


def test_size_and_channels_as_asked(tmp_path: Path, write_idx_set: Writer) -> None:
    write_idx_set(tmp_path / "mnist")
    train, test = data.load("mnist", root=tmp_path, image_size=9, channels=3)
    assert train.images.shape == (30, 3, 9, 9)
    assert test.images.shape == (20, 3, 9, 9)
    assert len(train.mean) == 3
    assert torch.equal(train.images[:, 0], train.images[:, 2])


def test_download_happens_only_when_asked_and_missing(
    tmp_path: Path, write_idx_set: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []

    def fetch(root: Path) -> None:
        fetched.append(root)
        write_idx_set(root / "MNIST" / "raw")

    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], fetch=fetch))
    with pytest.raises(DataError):
        data.load("mnist", root=tmp_path)
    assert fetched == []
    assert len(data.load("mnist", root=tmp_path, download=True)[0]) == 30
    data.load("mnist", root=tmp_path, download=True)
    assert fetched == [tmp_path]


def test_a_failed_download_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: Path) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], fetch=fetch))
    with pytest.raises(DataError, match=r"'mnist' could not be downloaded to .*: no route to host"):
        data.load("mnist", root=tmp_path, download=True)


def test_a_download_that_brings_nothing_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], fetch=lambda root: None))
    with pytest.raises(DataError, match="'mnist' was not found"):
        data.load("mnist", root=tmp_path, download=True)
