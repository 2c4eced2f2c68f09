"""Convolutions with masks of strips in bfloat16, on matrix tiles: Intel's AMX (amx-tile, amx-bf16).

Masks in which 16 or 32 consecutive output channels share their columns (granularity a multiple of 16) run on tile
products of [16][32] x [32][16] bfloat16 numbers with float32 sums; results are rounded once, to nearest. The tiles
("amx") are those of the processor, or an emulation of the instructions in plain C++ ("emulated", slow, for tests: their
arithmetic is that of the operation section of TDPBF16PS in Intel's Software Developer's Manual, volume 2).
Numbers below 2^-126, operands and sums, count as zero.
`FEDSPARSE_TILES` or `torch.ops.fedsparse.set_tiles` names one of them or "none"; unset, AMX where the processor has it.

    tile_multiply(a [16, K], b [K / 2, 16, 2], c [16, 16]) -> c + a b, one tile product: K even, 2 to 32, a and b
    bfloat16, c float32
"""

import torch
from torch import Tensor

from fedsparse.ops.algebra import Geometry, Products
from fedsparse.ops.index import Index
from fedsparse.ops.load import define

define("tile_multiply(Tensor a, Tensor b, Tensor c) -> Tensor")


@torch.library.register_fake("fedsparse::tile_multiply")
def _(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.empty_like(c)


def _product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    raw = torch.ops.fedsparse
    blocks = raw.to_blocked(x)
    y = raw.blocked_conv2d(values, index.indptr, index.cols, index.granularity, blocks, bias, *geometry[:4])
    return raw.from_blocked(y, x.shape[0])


def _transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
    raw, (*sizes, size) = torch.ops.fedsparse, geometry
    return raw.from_blocked(raw.blocked_conv2d_input(values, *index, raw.to_blocked(gy), size, *sizes), gy.shape[0])


def _sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    raw = torch.ops.fedsparse
    arrays = index.indptr, index.cols, index.granularity
    return raw.blocked_conv2d_weight(*arrays, raw.to_blocked(gy), raw.to_blocked(x), x.shape[0], *geometry[:4])


CONVOLUTIONS = Products(_product, _transposed, _sampled)
"""The three products of ordinary tensors in bfloat16, which enter and leave the blocked layout."""
