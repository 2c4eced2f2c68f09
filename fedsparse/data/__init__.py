"""Data sets held whole in memory, and the ways to split them over clients.

``load`` gives a train and a test `Dataset` of images by name, ``load_text`` those of text,
``partition`` gives each client its sample indices.
"""

from .augment import crop_flip
from .dataset import Dataset
from .partition import KINDS, partition
from .registry import available, is_text, known, load, load_text, names
from .samples import DataError, Samples
from .text import Text

__all__ = [
    "KINDS",
    "DataError",
    "Dataset",
    "Samples",
    "Text",
    "available",
    "crop_flip",
    "is_text",
    "known",
    "load",
    "load_text",
    "names",
    "partition",
]
