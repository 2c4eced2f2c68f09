"""Scikit-learn's embedded digits: 1,797 real scans of 8 x 8 pixels, in the package itself."""

import numpy as np
import torch

from .source import Split

CLASSES = 10
IMAGE_SIZE = 16
TEST_SHARE = 0.2
SPLIT_SEED = 1797


def read_digits() -> tuple[Split, Split]:
    """Train (1,442) and test (355) splits, uint8 [n, 1, 8, 8].

    Of each class a fifth, rounded down, is drawn for the test from a fixed seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The embedded pixels count inked points of a 4 x 4 cell: 0..16.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    test = _test_positions(labels)
    return _select(images, labels, ~test), _select(images, labels, test)


def _test_positions(labels: np.ndarray) -> np.ndarray:
    # RandomState, because numpy freezes its stream: the split outlives numpy's versions.
    rng = np.random.RandomState(SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        test[rng.permutation(members)[: int(TEST_SHARE * len(members))]] = True
    return test


def _select(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> Split:
    return torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])
