"""The largest scores: exact counts, ties to the lower index, the same on every device and number of threads.

    topk(scores, sizes, counts)   of segment i, sizes[i] long, the places of the counts[i] largest

Back ends: cpu (C++, float32 and float64, holds nothing beyond the result), triton (radix select, floating types: the
default on CUDA where triton is installed), reference, which serves everything else. No gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse.ops.backend import active_backend, runs_triton
from fedsparse.ops.load import define, require_compiled

define("topk(Tensor scores, SymInt[] sizes, SymInt[] counts) -> Tensor")


@torch.library.register_fake("fedsparse::topk")
def _(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    return scores.new_empty(sum(counts), dtype=torch.int64)


def reference(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The first places of a stable sort, segment after segment."""
    start, found = 0, [torch.empty(0, dtype=torch.int64, device=scores.device)]
    for size, count in zip(sizes, counts, strict=True):
        order = torch.sort(scores[start : start + size], descending=True, stable=True).indices
        found.append(order[:count].sort().values + start)
        start += size
    return torch.cat(found)


def topk(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, int64 [count], sorted; ties go to the lower index.

    Shapes: scores [n], any real dtype. ValueError for another shape, a NaN, or a count outside 0 to n.
    """
    return topk_segmented(scores, [len(scores)] if scores.dim() else [1], [count])


def topk_segmented(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """`topk` inside each of the consecutive segments of `scores`; indices into the whole, int64 [sum(counts)], sorted.

    Shapes: scores [sum(sizes)]; segment i has sizes[i] scores, of which counts[i] are taken.
    """
    _check(scores, sizes, counts)
    if selects_on_triton(scores):
        return triton_selected(scores, sizes, counts)
    compiled = scores.dtype in (torch.float32, torch.float64) and scores.device.type == "cpu"
    if not compiled or active_backend(scores.device) == "reference":
        return reference(scores, sizes, counts)
    require_compiled("cpu")
    return torch.ops.fedsparse.topk(scores.detach(), list(sizes), list(counts))


def selects_on_triton(scores: Tensor) -> bool:
    """Whether the Triton kernels select from these scores."""
    name = active_backend(scores.device)
    wanted = name in ("triton", "condensed") or (scores.is_cuda and name != "reference")
    return wanted and scores.is_floating_point() and runs_triton(scores.device)


def triton_selected(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """`topk_segmented` without a check of the arguments, for which the host would wait; a NaN is above all numbers."""
    from fedsparse.kernels import topk as kernels

    wide = scores if scores.dtype == torch.float64 else scores.float()
    return kernels.select(wide.detach().contiguous(), sizes, counts)


def _check(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> None:
    if scores.dim() != 1:
        raise ValueError(f"scores must have one dimension, not {scores.dim()}.")
    if len(sizes) != len(counts):
        raise ValueError(f"sizes and counts must be equally long, not {len(sizes)} and {len(counts)}.")
    if min(sizes, default=0) < 0 or sum(sizes) != scores.shape[0]:
        raise ValueError(f"sizes must be at least 0 and add up to {scores.shape[0]}, the number of scores.")
    for size, count in zip(sizes, counts):
        if not 0 <= count <= size:
            raise ValueError(f"count must be between 0 and {size}, the number of scores, not {count}.")
    if bool(scores.isnan().any()):
        raise ValueError("scores must not hold NaN.")
