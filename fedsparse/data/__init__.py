"""Data sets held whole in memory, and the ways to split them over clients.

``load`` gives a train and a test `Dataset` by name, ``partition`` gives each client its sample indices.
"""

from .augment import crop_flip
from .dataset import DataError, Dataset
from .partition import KINDS, partition
from .registry import available, load, names

__all__ = ["KINDS", "DataError", "Dataset", "available", "crop_flip", "load", "names", "partition"]
