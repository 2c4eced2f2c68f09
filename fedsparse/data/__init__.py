"""Data sets held whole in memory, and the ways to split them over clients.

``load`` gives a train and a test `Dataset` by name, ``partition`` gives each client its sample indices.
"""

from .augment import crop_flip
from .dataset import Dataset
from .partition import KINDS, partition
from .registry import available, load, names
from .samples import DataError, Samples

__all__ = ["KINDS", "DataError", "Dataset", "Samples", "available", "crop_flip", "load", "names", "partition"]
