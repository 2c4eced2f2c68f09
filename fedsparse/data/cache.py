"""Decoded images of large image folders, kept in the user's cache folder.

A file holds one npy array, then the SHA-256 of the listing it was decoded from, then the CRC-32 of the
pixels. Its name depends on the folder and not on its content, so that a changed folder replaces its file.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

MIN_FILES = 1000
"""Smaller sets are decoded each time: that takes less than a second."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/fedsparse, else ~/.cache/fedsparse."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedsparse"


def cached(files: Sequence[Path], shape: tuple[int, ...], variant: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """uint8 pixels of `files`, from the cache where names, sizes and times of change still match.

    Args:
        files: the images, in order.
        shape: of the pixels.
        variant: what else the pixels depend on.
        decode: makes the pixels when the cache has none.

    Warns:
        UserWarning: the cache folder cannot be written; the pixels are right all the same.
    """
    if len(files) < MIN_FILES:
        return decode()
    name = hashlib.sha256(f"{files[0].parent.parent.resolve()}|{shape}|{variant}".encode()).hexdigest()[:24]
    path = cache_folder() / f"images-{name}.npy"
    listing = _listing_digest(files)
    pixels = _read(path, shape, listing)
    if pixels is None:
        pixels = decode()
        _write(path, pixels, listing)
    return pixels


def _listing_digest(files: Sequence[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.parent.name}/{file.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.digest()


def _read(path: Path, shape: tuple[int, ...], listing: bytes) -> np.ndarray | None:
    try:
        with path.open("rb") as stream:
            pixels = np.lib.format.read_array(stream, allow_pickle=False)
            trailer = stream.read()
    except (OSError, ValueError, EOFError):
        return None
    if pixels.dtype != np.uint8 or pixels.shape != shape or trailer != listing + _checksum(pixels):
        return None
    return pixels


def _write(path: Path, pixels: np.ndarray, listing: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.lib.format.write_array(stream, pixels, allow_pickle=False)
            stream.write(listing + _checksum(pixels))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        warnings.warn(f"decoded images could not be cached in {path.parent}: {error}", stacklevel=2)


def _checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(4, "big")
