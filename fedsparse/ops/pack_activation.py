"""Of an activation keep only the entries of largest magnitude: pack_activation, unpack_activation.

    pack_activation(x)     of each sample x[b], n entries, the round(share * n) of largest |x|, at least 1:
                           a bitmap, the kept values in order, and where each sample's values start
    unpack_activation(p)   the tensor of x's shape with zeros at all other places

The share is taken in each sample, not over the batch: what is kept of a sample, and so its part of a gradient, does
not depend on which others are in its batch, no sample is left with nothing, and samples need no common threshold.
Of equal magnitudes the lower index is kept. Zeros are never stored, so that a share of 1 is lossless and still small
after a ReLU. NaN counts as the largest magnitude. Values are stored in x's dtype, or float32 ones as bfloat16.

No gradients: this is what a backward pass keeps, not a step of a forward pass.

    pack_images(x)         the same of x in blocks of images (`blocked`), each image a sample, one row of bits a block

Back ends: cpu (C++, float32 and float64: by a sample and vector compares, or radix selection), triton (radix selection:
the default on CUDA where triton is installed), dense and reference (torch, any device).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import kernel_backend
from fedsparse.ops.blocked import check_batch, check_blocked
from fedsparse.ops.innermost_norm import stands_innermost
from fedsparse.ops.load import define, require_compiled

define("pack_activation(Tensor x, int count, bool bfloat16) -> (Tensor, Tensor, Tensor)")
define("pack_images(Tensor x, SymInt batch, int count, bool bfloat16) -> (Tensor, Tensor, Tensor)")
define("unpack_activation(Tensor bits, Tensor values, Tensor starts, int n) -> Tensor")


@torch.library.register_fake("fedsparse::pack_activation")
def _(x: Tensor, count: int, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    bits = x.new_empty(x.shape[0], (x.shape[1] + 7) // 8, dtype=torch.uint8)
    values = x.new_empty(kept, dtype=torch.bfloat16 if bfloat16 else x.dtype)
    return bits, values, x.new_empty(x.shape[0] + 1, dtype=torch.int64)


@torch.library.register_fake("fedsparse::pack_images")
def _(x: Tensor, batch: int, count: int, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    bits = x.new_empty(x.shape[0], (x.shape[1:].numel() + 7) // 8, dtype=torch.uint8)
    values = x.new_empty(kept, dtype=torch.bfloat16 if bfloat16 else x.dtype)
    return bits, values, x.new_empty(x.shape[0] + 1, dtype=torch.int64)


@torch.library.register_fake("fedsparse::unpack_activation")
def _(bits: Tensor, values: Tensor, starts: Tensor, n: int) -> Tensor:
    dtype = torch.float32 if values.dtype == torch.bfloat16 else values.dtype
    return values.new_empty(bits.shape[0], n, dtype=dtype)


@dataclass(frozen=True, eq=False)
class PackedActivation:
    """A packed activation of shape [B, ...] with n entries a sample.

    bits: uint8 [B, ceil(n / 8)], entry i of a sample is bit i % 8 of byte i // 8. values: [kept], sample by sample.
    starts: int64 [B + 1], sample b owns values starts[b] to starts[b + 1].
    innermost: the images stood innermost, and where this says sample, it is of [C, H, W, B] a channel.
    """

    bits: Tensor
    values: Tensor
    starts: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    innermost: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return self.bits.nbytes + self.values.nbytes + self.starts.nbytes

    def unpack(self, first: int = 0, last: int | None = None) -> Tensor:
        """The activation, in its own dtype, with zeros where nothing was kept.

        Of samples `first` to `last`, the end excluded, or of all.
        """
        last = self.shape[0] if last is None else last
        unpacked = _functions("unpack_activation", self.values.device, self.dtype)[1]
        if self.innermost:
            laid = torch.Size((*self.shape[1:], self.shape[0]))
            whole = unpacked(self.bits, self.values, self.starts, laid[1:].numel()).to(self.dtype)
            return whole.view(laid).permute(3, 0, 1, 2)[first:last]
        n = torch.Size(self.shape[1:]).numel()
        bits, values, starts = self.bits, self.values, self.starts
        if (first, last) != (0, self.shape[0]):  # else no number is asked for, for which a GPU would be waited for
            begin, end = (int(starts[i]) for i in (first, last))
            bits, values, starts = bits[first:last], values[begin:end], starts[first : last + 1] - begin
        return unpacked(bits, values, starts, n).to(self.dtype).reshape(last - first, *self.shape[1:])


def pack_activation(x: Tensor, share: float, bfloat16: bool = False, images: int | None = None) -> PackedActivation:
    """Keep of each sample of x [B, ...] the share of its entries that has the largest magnitudes.

    With `images`, x are blocks of that many images [blocks, C, H, W, L] (`blocked`), and each image is a sample; what
    stands in lanes without an image is not kept. A share of 1 keeps all but zeros: then images that stand innermost are
    packed as they stand, a channel in the place of a sample, and come back so.

    ValueError where x is no batch of floats, the share is outside (0, 1], or float64 is to be stored as bfloat16.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"pack_activation: x must be floats of shape [B, ...], not {x.dtype} {tuple(x.shape)}.")
    if not 0 < share <= 1:
        raise ValueError(f"pack_activation: share must be in (0, 1], not {share}.")
    if bfloat16 and x.dtype == torch.float64:
        raise ValueError(f"pack_activation: only float32 is stored as bfloat16, not {x.dtype}.")
    bfloat16 = bfloat16 and x.dtype == torch.float32
    packed = _functions("pack_activation", x.device, x.dtype)[0]
    innermost = share == 1 and images is None and stands_innermost(x)
    flat = (x.permute(1, 2, 3, 0) if innermost else x).detach().flatten(1)
    with torch.no_grad():
        if images is not None and share < 1:
            check_blocked("pack_activation", "x", x)
            check_batch("pack_activation", x, images)
            count = _share(share, x.shape[1:4].numel())
            bits, values, starts = torch.ops.fedsparse.pack_images(x, images, count, bfloat16)
        else:
            bits, values, starts = packed(flat, _share(share, flat.shape[1]), bfloat16)
    return PackedActivation(bits, values, starts, tuple(x.shape), x.dtype, innermost)


def _share(share: float, entries: int) -> int:
    return min(entries, max(1, round(share * entries)))


def _reference_pack(x: Tensor, count: int, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    size = x.abs().nan_to_num_(nan=float("inf"), posinf=float("inf"))
    keep = torch.zeros_like(x, dtype=torch.bool)
    if count and x.numel():
        threshold = torch.topk(size, count, dim=1, sorted=False).values.amin(1, keepdim=True)
        keep = size > threshold
        ties = (size == threshold) & (threshold > 0)
        room = count - keep.sum(1, keepdim=True, dtype=torch.int32)
        keep |= ties & (ties.cumsum(1, dtype=torch.int32) <= room)
    values = x[keep]
    starts = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
    return pack_bits(keep), values.bfloat16() if bfloat16 else values, starts


def _reference_unpack(bits: Tensor, values: Tensor, starts: Tensor, n: int) -> Tensor:
    if values.dtype == torch.bfloat16:
        values = values.float()
    x = values.new_zeros(bits.shape[0], n)
    x[unpack_bits(bits, n)] = values
    return x


def _triton_pack(x: Tensor, count: int, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    from fedsparse.kernels import pack

    return pack.pack(x.contiguous(), count, torch.bfloat16 if bfloat16 else x.dtype)


def _triton_unpack(bits: Tensor, values: Tensor, starts: Tensor, n: int) -> Tensor:
    from fedsparse.kernels import pack

    wide = torch.float32 if values.dtype == torch.bfloat16 else values.dtype
    return pack.unpack(bits.contiguous(), values, starts, n, wide)


def pack_bits(flags: Tensor) -> Tensor:
    """uint8 [B, ceil(n / 8)] of bool [B, n]; bit i % 8 of byte i // 8 is flag i."""
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -flags.shape[1] % 8))
    weights = 2 ** torch.arange(8, device=flags.device, dtype=torch.uint8)
    return (padded.unflatten(1, (-1, 8)) * weights).sum(2, dtype=torch.uint8)


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """Bool [B, n] of uint8 [B, ceil(n / 8)]."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits[:, :, None] >> places & 1).bool().flatten(1)[:, :n]


_BACKENDS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "cpu": (torch.ops.fedsparse.pack_activation, torch.ops.fedsparse.unpack_activation),
    "triton": (_triton_pack, _triton_unpack),
    "condensed": (_triton_pack, _triton_unpack),
    "dense": (_reference_pack, _reference_unpack),
    "reference": (_reference_pack, _reference_unpack),
}


def _functions(op: str, device: torch.device, dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """To pack activations of the dtype and to unpack them on the active back end; half types on the CPU by torch."""
    name = kernel_backend(op, _BACKENDS, device)
    if name == "cpu" and dtype in (torch.float16, torch.bfloat16):
        name = "dense"
    if name == "cpu":
        require_compiled("cpu")
    return _BACKENDS[name]
