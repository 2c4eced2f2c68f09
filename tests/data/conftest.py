import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GIVEN = os.environ.get("FEDSPARSE_DATA")
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's data, or leaves anything in the user's cache or in the tree."""
    monkeypatch.delenv("FEDSPARSE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The path of a real file below FEDSPARSE_DATA or ../shared/data; skips where it is absent."""

    def find(name: str) -> Path:
        roots = [Path(GIVEN)] if GIVEN else []
        for root in [*roots, BESIDE]:
            if (root / name).exists():
                return root / name
        pytest.skip(f"{name} is in neither FEDSPARSE_DATA nor ../shared/data")

    return find


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def write_idx_set() -> Callable[..., dict[str, np.ndarray]]:
    """Write the four idx files of a small set into a folder; gives the arrays by stem."""

    def write(
        folder: Path, packed: bool = True, train: int = 30, test: int = 20, seed: int = 0
    ) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for stem, count in (("train", train), ("t10k", test)):
            arrays[f"{stem}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 6, 6), dtype=np.uint8)
            arrays[f"{stem}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
        for name, array in arrays.items():
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (folder / name).write_bytes(idx_bytes(array))
        return arrays

    return write


@pytest.fixture
def write_image() -> Callable[[Path, np.ndarray], None]:
    """Write a uint8 array [h, w] or [h, w, 3] as an image file."""

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    return write
