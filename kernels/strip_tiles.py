"""How much a program of the strips' kernels does at a time, by the rows V of a strip, the type and the entries."""

from dataclasses import dataclass

import torch

VECTORS = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """What one program does at a time: `outputs` pixels of images x `entries`, held by `warps`, `stages` in flight."""

    outputs: int
    entries: int
    warps: int
    stages: int


def product_tile(vector: int, dtype: torch.dtype) -> Tile:
    """The tile of `strip_product`."""
    if dtype == torch.float32:
        return Tile(128, 16, 4, 3)
    return Tile(128, 32, 4, 4) if vector < 64 else Tile(128, 32, 8, 4)


def sample_tile(vector: int, dtype: torch.dtype, entries_per_strip: float) -> Tile:
    """The tile of `strip_sample`: few entries to a strip take a short tile."""
    entries = 64 if entries_per_strip > 32 else 32 if entries_per_strip > 16 else 16
    return Tile(32 if dtype == torch.float32 else 64, entries, 4, 3)


def spread_tile(vector: int, dtype: torch.dtype, entries_per_strip: float) -> Tile:
    """The tile of `strip_spread`."""
    entries = 64 if entries_per_strip > 32 else 32 if entries_per_strip > 16 else 16
    if dtype == torch.float32:
        return Tile(128, min(entries, 32), 8 if vector == 64 else 4, 2)
    return Tile(128, entries, 4, 2)
