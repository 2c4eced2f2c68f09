from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsparse import data
from fedsparse.data import DataError

Write = Callable[[Path, np.ndarray], None]


def arrays(clients: int = 3, each: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    count = clients * each
    return {
        "images": rng.integers(0, 256, (count, 6, 6), dtype=np.uint8),
        "labels": np.arange(count) % 4,
        "clients": np.array([f"writer {2 - i % clients}" for i in range(count)]),
    }


def test_npz_clients_are_numbered_in_order_and_a_tenth_of_each_is_the_test(tmp_path: Path) -> None:
    stored = arrays()
    np.savez(tmp_path / "set.npz", **stored)
    train, test = data.load(f"npz:{tmp_path / 'set.npz'}")
    assert (len(train), len(test), train.classes, train.channels) == (54, 6, 4, 1)
    assert train.clients is not None
    assert train.clients[:3].tolist() == [2, 1, 0]
    assert train.clients.bincount().tolist() == [18, 18, 18]
    assert np.array_equal(train.images[:, 0].numpy(), stored["images"][:54])
    assert np.array_equal(test.labels.numpy(), stored["labels"][54:])
    assert test.clients is None
    parts = data.partition("natural", train.labels.numpy(), 3, np.random.default_rng(0), natural=train.clients.numpy())
    assert parts[2][:2].tolist() == [0, 3]


def test_npz_with_colour_a_test_of_its_own_and_integer_clients(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 5, 5, 3), dtype=np.uint8)
    np.savez_compressed(
        tmp_path / "set.npz",
        images=images,
        labels=np.zeros(12, dtype=np.int32),
        clients=np.repeat([70, 5], 6),
        test_images=images[:2],
        test_labels=np.array([0, 3]),
    )
    train, test = data.load("npz:set.npz", root=tmp_path, train_limit=5)
    assert (len(train), len(test), train.classes) == (6, 2, 4)
    assert train.clients is not None
    assert train.clients.tolist() == [1, 1, 1, 0, 0, 0]
    assert np.array_equal(train.images.numpy(), images[[0, 1, 2, 6, 7, 8]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, "lacks the array 'labels'; it holds clients, images"),
        ({"images": np.zeros((60, 6, 6))}, "images must be uint8 .* not float64"),
        ({"images": np.zeros((60, 6, 6, 2), dtype=np.uint8)}, r"of shape \[60, 6, 6, 2\]"),
        ({"labels": np.arange(59)}, r"labels must be integers from 0, of shape \[60\]"),
        ({"labels": np.arange(60) - 1}, "labels must be integers from 0"),
        ({"clients": np.zeros(60)}, "clients must be integers or text"),
        ({"clients": np.arange(60)}, "no client has the ten images"),
        ({"clients": np.array([{}] * 60, dtype=object)}, "not a readable .npz file of plain arrays"),
        ({"test_images": np.zeros((2, 6, 6), dtype=np.uint8)}, "only one of test_images and test_labels"),
        ({"test_images": np.zeros((1, 5, 5), dtype=np.uint8), "test_labels": np.zeros(1, int)}, "and test_images"),
    ],
)
def test_npz_that_do_not_fit_get_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    stored = {key: value for key, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "set.npz", **stored)
    with pytest.raises(DataError, match=sentence):
        data.load(f"npz:{tmp_path / 'set.npz'}")


@pytest.mark.parametrize("content", [b"", b"garbage" * 20, b"cbuiltins\nopen\n(S'executed'\nS'w'\ntR."])
def test_damaged_npz_are_refused_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable .npz file"):
        data.load(f"npz:{tmp_path / 'set.npz'}")
    assert not Path("executed").exists()


def test_a_truncated_or_single_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable .npz file"):
        data.load(f"npz:{path}")
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="is not an .npz file but a single array"):
        data.load(f"npz:{path}")


@pytest.fixture
def folder(tmp_path: Path, write_image: Write) -> Path:
    """Clients zoe (classes a: 2, b: 1) and amy (b: 2, c: 1); the test has eve (a: 1)."""
    shade = 0
    for split, client, counts in (("train", "zoe", "aab"), ("train", "amy", "bbc"), ("test", "eve", "a")):
        for name in counts:
            write_image(tmp_path / "set" / split / client / name / f"{shade}.png", np.full((4, 4), shade, np.uint8))
            shade += 1
    return tmp_path / "set"


def test_client_folders(folder: Path) -> None:
    train, test = data.load(f"clientfolder:{folder}")
    assert train.clients is not None
    assert train.clients.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.tolist() == [1, 1, 2, 0, 0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [3, 4, 5, 0, 1, 2]
    assert (test.labels.tolist(), test.classes, test.images[0, 0, 0, 0].item()) == ([0], 3, 6)


def test_client_folders_with_a_limit_keep_the_first_of_each_client(folder: Path) -> None:
    train, _ = data.load("clientfolder:set", root=folder.parent, train_limit=3)
    assert train.clients is not None
    assert train.clients.tolist() == [0, 0, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [3, 4, 0, 1]


def test_client_folders_that_lack_something_get_one_sentence(folder: Path, write_image: Write) -> None:
    with pytest.raises(DataError, match="'clientfolder:nowhere' was not found"):
        data.load("clientfolder:nowhere")
    write_image(folder / "test" / "eve" / "d" / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="the class 'd', which no train client has"):
        data.load(f"clientfolder:{folder}")
    (folder / "test").rename(folder / "tests")
    with pytest.raises(DataError, match="holds no folder test/<client>/<class>/"):
        data.load(f"clientfolder:{folder}")
