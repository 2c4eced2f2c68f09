"""What the federated loop asks of a data set, and the error of every data set."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor


class DataError(ValueError):
    """A data set is missing, corrupt or asked for in a way that it cannot serve."""


class Samples(Protocol):
    """A data set held whole in memory: of images (`Dataset`) or of text (`Text`)."""

    @property
    def name(self) -> str:
        """What `load` was asked for."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [n]: what a split over clients may be skewed by; the class of an image, the file of a text."""
        ...

    @property
    def clients(self) -> Tensor | None:
        """int64 [n]: the natural client of each sample, numbered from 0, where the data set has them."""
        ...

    @property
    def classes(self) -> int:
        """How many values a target can have."""
        ...

    def __len__(self) -> int:
        """Number of samples n."""
        ...

    def batch(self, index: Tensor | np.ndarray, augment: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the samples at int [b]: targets int64 [b], or [b, context] for text."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same set with its tensors on a device; batches then come from there."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ...
