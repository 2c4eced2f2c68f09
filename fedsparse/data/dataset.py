"""The data set type: every image in memory, normalised when a batch is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from .augment import crop_flip, sent
from .samples import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, the whole set in memory.

    Args:
        name: what `load` was asked for.
        images: [n, channels, height, width], uint8 (pixels 0..255) or float32 (in the units of mean and std).
        labels: int64 [n], each in 0..classes-1.
        classes: how many classes there are, also where a split lacks some of them.
        mean: per channel, in units of pixel / 255 for uint8 images.
        std: per channel, positive, the same units.
        clients: int64 [n], the natural client of each image, numbered from 0; None where the set has none.

    Raises:
        DataError: the fields contradict one another.
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clients: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"{self.name}: images must be uint8 or float32 of shape [n, channels, height, width], "
                f"not {self.images.dtype} of shape {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64 of shape [{len(self.images)}], "
                f"not {self.labels.dtype} of shape {list(self.labels.shape)}"
            )
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            raise DataError(
                f"{self.name}: labels must lie in 0..{self.classes - 1}, "
                f"not in {int(self.labels.min())}..{int(self.labels.max())}"
            )
        if not len(self.mean) == len(self.std) == self.channels or min(self.std, default=0.0) <= 0:
            raise DataError(f"{self.name}: mean and std need {self.channels} numbers each, every std above 0")
        if self.clients is not None and (self.clients.dtype != torch.int64 or self.clients.shape != self.labels.shape):
            raise DataError(
                f"{self.name}: clients must be int64 of shape [{len(self.images)}], "
                f"not {self.clients.dtype} of shape {list(self.clients.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels; the images that `load` gives are square."""
        return self.images.shape[2]

    @cached_property
    def _is_normal(self) -> bool:
        """Whether there is nothing to normalise."""
        return self.images.dtype == torch.float32 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @cached_property
    def _scale_shift(self) -> tuple[Tensor, Tensor]:
        unit = 255.0 if self.images.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(1, -1, 1, 1)
        device = self.images.device
        return (1 / (unit * std)).float().to(device), (-mean / std).float().to(device)

    def batch(self, index: Tensor | np.ndarray, augment: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of some samples.

        Args:
            index: int [b], positions in the set, repeats allowed.
            augment: apply `crop_flip` with draws from this generator; None leaves the images as they are.

        Returns:
            float32 [b, channels, height, width] with (pixel / 255 - mean) / std, and int64 [b].
        """
        where = index if isinstance(index, Tensor) else torch.from_numpy(np.array(index, dtype=np.int64))
        where = sent(where, self.images.device)
        images = self.images.index_select(0, where)
        if augment is not None:
            images = crop_flip(images, augment)
        if not self._is_normal:
            scale, shift = self._scale_shift
            # index_select made a copy, so that the product may be in place whatever the dtype.
            images = images.float().mul_(scale).add_(shift)
        return images, self.labels.index_select(0, where)

    @property
    def nbytes(self) -> int:
        """Bytes of images and labels."""
        return self.images.nbytes + self.labels.nbytes

    def to(self, device: torch.device | str) -> Dataset:
        """The same set with its tensors on a device; batches then come from there."""
        clients = None if self.clients is None else self.clients.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), clients=clients)


def moments(images: Tensor, chunk: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [n, c, h, w], in units of pixel / 255.

    Pixels are counted as integers, so that the result is the same for any number of threads. A constant
    channel gets std 1.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(chunk):
        for channel in range(images.shape[1]):
            counts[channel] += part[:, channel].flatten().to(torch.int32).bincount(minlength=256)
    shares = counts.double() / (images.numel() // images.shape[1])
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * levels).sum(1, keepdim=True)
    std = (shares * (levels - mean) ** 2).sum(1).sqrt()
    return tuple(mean.flatten().tolist()), tuple(s if s > 0 else 1.0 for s in std.tolist())
