"""Bitmaps of rows, as the kernels of this package read and write them: entry i of a row is bit i % 8 of byte i // 8."""

import triton
import triton.language as tl


@triton.jit
def bytes_of(flags: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """uint8 [BLOCK / 8] of flags [BLOCK], 0 or 1."""
    places = tl.reshape(flags.to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
    return tl.sum(places, axis=1).to(tl.uint8)


@triton.jit
def store_flags(bits: tl.tensor, begin: tl.tensor, flags: tl.tensor, run: tl.tensor, BLOCK: tl.constexpr) -> None:
    """The bits of a row from entry `begin`, a multiple of 8, on."""
    to = begin // 8 + tl.arange(0, BLOCK // 8)
    tl.store(bits + to, bytes_of(flags, BLOCK), mask=to < (run + 7) // 8)


@triton.jit
def rectified(g: tl.tensor, bits: tl.tensor, at: tl.tensor, run: tl.tensor) -> tl.tensor:
    """g of a row's entries `at` where the bit is set, else 0."""
    byte = tl.load(bits + at // 8, mask=at < run, other=0).to(tl.int32)
    return tl.where((byte >> (at % 8)) & 1 != 0, g, 0.0)


@triton.jit
def flags_at(bits: tl.tensor, begin: tl.tensor, run: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """int32 [BLOCK / 8, 8] of a row's bits from entry `begin`, a multiple of 8, on; 0 beyond the row."""
    byte = tl.arange(0, BLOCK // 8)
    loaded = tl.load(bits + begin // 8 + byte, mask=begin + byte * 8 < run, other=0).to(tl.int32)
    return (loaded[:, None] >> tl.arange(0, 8)[None, :]) & 1


@triton.jit
def places_before(flags: tl.tensor) -> tl.tensor:
    """Of int32 flags [BYTES, 8], how many are set before each, bytes first."""
    of_byte = tl.sum(flags, axis=1)
    return (tl.cumsum(of_byte, axis=0) - of_byte)[:, None] + tl.cumsum(flags, axis=1) - flags
