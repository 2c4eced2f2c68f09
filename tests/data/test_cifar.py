from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets.utils

from fedsparse import data
from fedsparse.data import DataError, cifar

Damage = Callable[[bytes], bytes]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, cifar.Layout]:
    """Both layouts with 4 records in a train file and 3 in the test file, and sources made of them."""
    layouts = {name: replace(layout, records=(4, 3)) for name, layout in cifar.LAYOUTS.items()}
    for name, layout in layouts.items():
        monkeypatch.setitem(cifar.LAYOUTS, name, layout)
        monkeypatch.setitem(data.registry.SOURCES, name, cifar.cifar_source(name))
    return layouts


def write(root: Path, layout: cifar.Layout) -> dict[str, np.ndarray]:
    """Random files of a layout, as uint8 [records, label bytes + 3072] by name."""
    rng = np.random.default_rng(0)
    folder = root / layout.folder
    folder.mkdir(parents=True)
    tables = {}
    for names, records in zip((layout.train, layout.test), layout.records):
        for name in names:
            labels = rng.integers(0, layout.classes, (records, layout.label + 1))
            tables[name] = np.concatenate([labels, rng.integers(0, 256, (records, 3072))], axis=1).astype(np.uint8)
            (folder / name).write_bytes(tables[name].tobytes())
    return tables


def test_the_published_sizes() -> None:
    """30,730,000 bytes a file of CIFAR-10; 153,700,000 and 30,740,000 of CIFAR-100."""
    ten, hundred = cifar.LAYOUTS["cifar10"], cifar.LAYOUTS["cifar100"]
    assert len(ten.train) * ten.records[0] == hundred.records[0] == 50_000
    assert ten.records[1] * (ten.label + 1 + cifar.PIXELS) == 30_730_000
    assert hundred.records[0] * (hundred.label + 1 + cifar.PIXELS) == 153_700_000
    assert hundred.records[1] * (hundred.label + 1 + cifar.PIXELS) == 30_740_000


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("below", ["own folder", "root"])
def test_pixels_and_fine_labels(tmp_path: Path, small: dict[str, cifar.Layout], name: str, below: str) -> None:
    layout = small[name]
    tables = write(tmp_path / name if below == "own folder" else tmp_path, layout)
    train, test = data.load(name, root=tmp_path)
    assert (len(train), len(test), train.classes) == (4 * len(layout.train), 3, layout.classes)
    expected = np.concatenate([tables[file] for file in layout.train])
    assert train.labels.tolist() == expected[:, layout.label].tolist()
    red_top_row = expected[2, layout.label + 1 :][:32]
    assert np.array_equal(train.images[2, 0, 0].numpy(), red_top_row)
    assert np.array_equal(test.images.flatten(1).numpy(), tables[layout.test[0]][:, layout.label + 1 :])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content[:-1], r"has 12291 bytes, not 4 records of 3073: it is not the published file"),
        (lambda content: content + b"\0", "has 12293 bytes"),
        (lambda content: b"", "has 0 bytes"),
        (lambda content: b"\x0a" + content[1:], r"holds the label 10: labels must lie in 0\.\.9"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, small: dict[str, cifar.Layout], damage: Damage, sentence: str) -> None:
    write(tmp_path, small["cifar10"])
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"data_batch_3\.bin {sentence}"):
        data.load("cifar10", root=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, small: dict[str, cifar.Layout]) -> None:
    write(tmp_path, small["cifar100"])
    (tmp_path / "cifar-100-binary" / "test.bin").unlink()
    with pytest.raises(DataError, match=r"test\.bin cannot be read"):
        data.load("cifar100", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"]),
        ("cifar100", ["cifar-100-python/train", "cifar-100-python/test"]),
    ],
)
def test_the_python_versions_are_never_opened(tmp_path: Path, name: str, files: list[str]) -> None:
    """Their content would run code if it were unpickled; the sentence says what to get instead."""
    trap = tmp_path / "executed"
    for file in files:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cbuiltins\nopen\n(S'" + str(trap).encode() + b"'\nS'w'\ntR.")
    with pytest.raises(DataError, match="binary.tar.gz .*is a pickle and is not read"):
        data.load(name, root=tmp_path)
    assert not trap.exists()


def test_a_download_asks_for_the_binary_version_and_its_checksum(
    tmp_path: Path, small: dict[str, cifar.Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(url: str, folder: str, md5: str) -> None:
        asked.append((url, folder, md5))
        write(Path(folder), small["cifar10"])

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetched)
    train, _ = data.load("cifar10", root=tmp_path, download=True)
    assert isinstance(train.images, torch.Tensor)
    (url, folder, md5) = asked[0]
    assert url.endswith("/cifar-10-binary.tar.gz")
    assert (folder, md5) == (str(tmp_path / "cifar10"), "c32a1d4ab5d03f1284b67883e8d87530")
