import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsparse import data
from fedsparse.data import DataError, cache, imagefolder

Write = Callable[[Path, np.ndarray], None]


def picture(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, write_image: Write) -> Path:
    """Three classes with 4, 3 and 2 train images and one test image each; pixel seeds count up in sorted order."""
    seed = 0
    for split, counts in (("train", (4, 3, 2)), ("test", (1, 1, 1))):
        for name, count in zip(("ant", "bee", "cat"), counts):
            for number in range(count):
                write_image(tmp_path / "set" / split / name / f"{number}.png", picture(seed))
                seed += 1
    return tmp_path / "set"


def test_pixels_and_labels_in_sorted_order(folder: Path) -> None:
    train, test = data.load(f"imagefolder:{folder}")
    assert train.classes == 3
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert test.labels.tolist() == [0, 1, 2]
    for seed, image in enumerate([*train.images.numpy(), *test.images.numpy()]):
        assert np.array_equal(image.transpose(1, 2, 0), picture(seed))


@pytest.mark.parametrize(("limit", "labels"), [(1, [0, 1, 2]), (3, [0, 1, 2]), (4, [0, 0, 1, 1, 2, 2])])
def test_train_limit_takes_the_first_of_each_class(folder: Path, limit: int, labels: list[int]) -> None:
    train, test = data.load(f"imagefolder:{folder}", train_limit=limit)
    assert train.labels.tolist() == labels
    assert np.array_equal(train.images[0].numpy().transpose(1, 2, 0), picture(0))
    assert len(test) == 3


def test_val_serves_as_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(data.load(f"imagefolder:{folder}")[1]) == 3


def test_a_relative_path_is_tried_as_given_then_below_the_roots(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(data.load("imagefolder:set", root=tmp_path)[0]) == 9
    monkeypatch.setenv("FEDSPARSE_DATA", str(tmp_path))
    assert len(data.load("imagefolder:set")[0]) == 9
    shutil.copytree(folder, "set")
    next(Path("set/train/ant").iterdir()).unlink()
    assert len(data.load("imagefolder:set")[0]) == 8


def test_missing_folder_names_the_candidates(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load("imagefolder:birds", root=tmp_path)
    for part in ("'imagefolder:birds'", str(tmp_path / "birds"), ".data/birds", "train/<class>/"):
        assert part in str(caught.value)


def test_resize_crops_the_centre_square(tmp_path: Path, write_image: Write) -> None:
    """4 x 8 pixels, left and right quarters white: the centre 4 x 4 is black."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :2] = pixels[:, 6:] = 255
    for split in ("train", "test"):
        write_image(tmp_path / split / "one" / "a.png", pixels)
    train, _ = data.load(f"imagefolder:{tmp_path}", image_size=4)
    assert train.images.shape == (1, 3, 4, 4)
    assert int(train.images.max()) == 0


def test_grey_files_give_one_channel_and_three_when_asked(tmp_path: Path, write_image: Write) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for split in ("train", "test"):
        write_image(tmp_path / split / "one" / "a.png", pixels)
    train, _ = data.load(f"imagefolder:{tmp_path}")
    assert np.array_equal(train.images.numpy()[0, 0], pixels)
    assert data.load(f"imagefolder:{tmp_path}", channels=3)[0].channels == 3


def test_colour_files_give_luma_when_asked(folder: Path) -> None:
    train, _ = data.load(f"imagefolder:{folder}", channels=1)
    expected = np.asarray(Image.fromarray(picture(0)).convert("L"))
    assert np.array_equal(train.images.numpy()[0, 0], expected)


def test_other_files_and_hidden_folders_are_left_out(folder: Path) -> None:
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    assert len(data.load(f"imagefolder:{folder}")[0]) == 9


def test_a_file_of_another_size_is_named(folder: Path, write_image: Write) -> None:
    write_image(folder / "train" / "bee" / "9.png", picture(0, side=9))
    with pytest.raises(DataError, match=r"bee/9\.png has 9 x 9 pixels where 8 x 8 are expected: set image_size"):
        data.load(f"imagefolder:{folder}")
    assert data.load(f"imagefolder:{folder}", image_size=8)[0].images.shape == (10, 3, 8, 8)


def test_oblong_images_need_an_image_size(tmp_path: Path, write_image: Write) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "one" / "a.png", np.zeros((4, 6, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="6 x 4 pixels where 4 x 4 are expected: set image_size"):
        data.load(f"imagefolder:{tmp_path}")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def blank(content: bytes) -> bytes:
    return b""


def garble(content: bytes) -> bytes:
    return b"garbage" * 30


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", [cut, blank, garble])
def test_a_damaged_image_is_named(
    folder: Path, write_image: Write, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    path = folder / "train" / "cat" / f"zz.{suffix}"
    write_image(path, picture(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"zz\.{suffix} is not a readable image"):
        data.load(f"imagefolder:{folder}")


def test_deep_pixels_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "one").mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / split / "one" / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        data.load(f"imagefolder:{tmp_path}")


def test_a_class_only_in_the_test_is_named(folder: Path) -> None:
    shutil.copytree(folder / "test" / "ant", folder / "test" / "dog")
    with pytest.raises(DataError, match="the class 'dog'"):
        data.load(f"imagefolder:{folder}")


def test_a_class_without_test_images_keeps_its_number(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "bee")
    _train, test = data.load(f"imagefolder:{folder}")
    assert test.labels.tolist() == [0, 2]
    assert test.classes == 3


def test_empty_folders_are_named(folder: Path) -> None:
    (folder / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="dog holds no image file"):
        data.load(f"imagefolder:{folder}")
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(DataError, match="train holds no class folders"):
        data.load(f"imagefolder:{folder}")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Caches sets of any size; gives the sizes of the sets that were decoded."""
    sizes: list[int] = []
    decode = imagefolder.decode

    def counted(files: list[Path], size: int, channels: int, resize: bool) -> np.ndarray:
        sizes.append(len(files))
        return decode(files, size, channels, resize)

    monkeypatch.setattr(cache, "MIN_FILES", 1)
    monkeypatch.setattr(imagefolder, "decode", counted)
    return sizes


def test_a_second_load_comes_from_the_cache(folder: Path, decoded: list[int]) -> None:
    first, _ = data.load(f"imagefolder:{folder}")
    second, _ = data.load(f"imagefolder:{folder}")
    assert decoded == [9, 3]
    assert np.array_equal(first.images.numpy(), second.images.numpy())
    assert all(path.suffix == ".npy" for path in cache.cache_folder().iterdir())


def test_another_shape_is_another_cache_entry(folder: Path, decoded: list[int]) -> None:
    for arguments in ({}, {"image_size": 8}, {"image_size": 4}, {"channels": 1}, {"train_limit": 3}):
        train, _ = data.load(f"imagefolder:{folder}", **arguments)
        again, _ = data.load(f"imagefolder:{folder}", **arguments)
        assert np.array_equal(train.images.numpy(), again.images.numpy())
    # All five read the train split anew; a limit leaves the test split as it was.
    assert decoded == [9, 3, 9, 3, 9, 3, 9, 3, 3]


def test_a_changed_file_is_decoded_again_and_replaces_the_entry(
    folder: Path, decoded: list[int], write_image: Write
) -> None:
    data.load(f"imagefolder:{folder}")
    entries = len(list(cache.cache_folder().iterdir()))
    write_image(folder / "train" / "ant" / "0.png", picture(77))
    train, _ = data.load(f"imagefolder:{folder}")
    assert decoded == [9, 3, 9]
    assert np.array_equal(train.images[0].numpy().transpose(1, 2, 0), picture(77))
    assert len(list(cache.cache_folder().iterdir())) == entries


def flip_byte(content: bytes) -> bytes:
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


@pytest.mark.parametrize("damage", [cut, blank, garble, flip_byte])
def test_a_damaged_cache_is_decoded_again(folder: Path, decoded: list[int], damage: Callable[[bytes], bytes]) -> None:
    first, _ = data.load(f"imagefolder:{folder}")
    for path in cache.cache_folder().iterdir():
        path.write_bytes(damage(path.read_bytes()))
    again, _ = data.load(f"imagefolder:{folder}")
    assert decoded == [9, 3, 9, 3]
    assert np.array_equal(first.images.numpy(), again.images.numpy())


def test_an_unwritable_cache_warns_and_loads(folder: Path, tmp_path: Path, decoded: list[int]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be cached"):
        train, _ = data.load(f"imagefolder:{folder}")
    assert len(train) == 9


def test_small_folders_are_not_cached(folder: Path) -> None:
    data.load(f"imagefolder:{folder}")
    assert not cache.cache_folder().exists()


def test_ten_thousand_jpegs_load_within_fifteen_seconds(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "one.jpg", picture(0, side=32))
    content = (tmp_path / "one.jpg").read_bytes()
    for split, count in (("train", 9900), ("test", 100)):
        (tmp_path / "many" / split / "one").mkdir(parents=True)
        for number in range(count):
            (tmp_path / "many" / split / "one" / f"{number:05d}.jpg").write_bytes(content)
    start = time.perf_counter()
    train, _ = data.load(f"imagefolder:{tmp_path / 'many'}")
    assert time.perf_counter() - start < 15
    assert len(train) == 9900
