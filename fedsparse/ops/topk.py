"""The largest scores: exact count, ties to the lower index, the same on every device and number of threads."""

from collections.abc import Sequence

import torch
from torch import Tensor


def topk(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, int64 [count], sorted; ties go to the lower index.

    Shapes: scores [n], any real dtype. ValueError for another shape, a NaN, or a count outside 0 to n.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores must have one dimension, not {scores.dim()}.")
    if not 0 <= count <= scores.shape[0]:
        raise ValueError(f"count must be between 0 and {scores.shape[0]}, the number of scores, not {count}.")
    if bool(scores.isnan().any()):
        raise ValueError("scores must not hold NaN.")
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.topk(scores, count, sorted=False).values.min()
    above = (scores > threshold).nonzero().reshape(-1)
    ties = (scores == threshold).nonzero().reshape(-1)[: count - above.shape[0]]
    return torch.cat((above, ties)).sort().values


def topk_segmented(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """`topk` inside each of the consecutive segments of `scores`; indices into the whole, int64 [sum(counts)], sorted.

    Shapes: scores [sum(sizes)]; segment i has sizes[i] scores, of which counts[i] are taken.
    """
    if len(sizes) != len(counts):
        raise ValueError(f"sizes and counts must be equally long, not {len(sizes)} and {len(counts)}.")
    if min(sizes, default=0) < 0 or sum(sizes) != scores.shape[0]:
        raise ValueError(f"sizes must be at least 0 and add up to {scores.shape[0]}, the number of scores.")
    start, found = 0, [torch.empty(0, dtype=torch.int64, device=scores.device)]
    for size, count in zip(sizes, counts, strict=True):
        found.append(topk(scores[start : start + size], count) + start)
        start += size
    return torch.cat(found)
