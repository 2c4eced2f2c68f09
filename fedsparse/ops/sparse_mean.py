"""Weighted means of clients' reports that have different masks: sparse_sum, sparse_mean.

    sparse_sum    of each place that any client has      sum_k rint(p_k x_k 2^40),  sum_k rint(p_k 2^40)
    sparse_mean   their quotient, the mean of those that have the place, and the share of the clients that do

over the clients k that have it, p_k their shares. A client's report is a bitmap of its places and the values there, in
order. The product p_k 2^40 x_k is rounded to float64, then to an integer, ties to even: integers add in any order and
grouping to the same bits, on any device, as `fedsparse.federated.Total` adds messages.

No gradients. Back ends: triton (the default on CUDA where triton is installed), else torch, any device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedsparse.ops.backend import kernel_backend
from fedsparse.ops.pack_activation import unpack_bits

SCALE = 2.0**40
Sums = tuple[Tensor, Tensor, Tensor]


def sparse_sum(bits: Tensor, values: Tensor, shares: Sequence[float]) -> Sums:
    """(places, sums, weights), int64 [u], of the u places that any client has, sorted.

    bits: uint8 [K, n / 8], place 8 i + j is bit j of byte i. values: float32, float16 or bfloat16 [all bits that are
    set], of the first client, then the next, each below 2^22 in magnitude. shares: p_k in [0, 1], at most 1 together.
    ValueError for other shapes or dtypes, or where the number of values is not that of bits set.
    """
    if bits.dim() != 2 or bits.dtype != torch.uint8:
        raise ValueError(f"sparse_mean: bits must be uint8 [K, bytes], not {bits.dtype} {tuple(bits.shape)}.")
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16) or values.dim() != 1:
        raise ValueError(f"sparse_mean: values must be 1-D floats of 32 or 16 bits, not {values.dtype}.")
    if len(shares) != bits.shape[0]:
        raise ValueError(f"sparse_mean: there are {bits.shape[0]} clients and {len(shares)} shares.")
    scales = torch.tensor([share * SCALE for share in shares], dtype=torch.float64, device=bits.device)
    weights = torch.tensor([round(share * SCALE) for share in shares], dtype=torch.int64, device=bits.device)
    return _BACKENDS[kernel_backend("sparse_mean", _BACKENDS, bits.device)](bits, values.detach(), scales, weights)


def sparse_mean(bits: Tensor, values: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(places int64, mean float32, share float32), [u]; arguments and errors as `sparse_sum` has them."""
    places, sums, weights = sparse_sum(bits, values, shares)
    return places, (sums.double() / weights.clamp(min=1).double()).float(), (weights.double() / SCALE).float()


def _by_torch(bits: Tensor, values: Tensor, scales: Tensor, weights: Tensor) -> Sums:
    flags = unpack_bits(bits, 8 * bits.shape[1])
    held = flags.sum(1)
    if int(held.sum()) != len(values):
        raise ValueError(f"sparse_mean: {int(held.sum())} bits are set, but there are {len(values)} values.")
    fixed = (values.double() * scales.repeat_interleave(held)).round().long()
    sums = fixed.new_zeros(flags.shape[1]).index_add_(0, flags.nonzero()[:, 1], fixed)
    places = flags.any(0).nonzero().flatten()
    return places, sums[places], (flags * weights[:, None]).sum(0)[places]


def _by_triton(bits: Tensor, values: Tensor, scales: Tensor, weights: Tensor) -> Sums:
    from fedsparse.kernels.sparse_mean import add_reports

    return add_reports(bits.contiguous(), values.float().contiguous(), scales, weights)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Sums]] = {
    "triton": _by_triton,
    "condensed": _by_triton,
    **dict.fromkeys(("cpu", "dense", "reference"), _by_torch),
}
