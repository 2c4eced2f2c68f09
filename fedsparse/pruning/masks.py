"""An initial mask for a whole model: scores, layer densities, exact counts."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from fedsparse.pruning.density import Rule, layer_counts
from fedsparse.pruning.select import highest, top_mask

Distribution = Rule | Literal["global"]


def top_masks(scores: Mapping[str, Tensor], counts: Mapping[str, int], granularity: int = 1) -> dict[str, Tensor]:
    """Keep in each layer the `counts[name]` weights of highest score; bool masks of the scores' shapes."""
    return {name: top_mask(scores[name], count, granularity) for name, count in counts.items()}


def masks_from_scores(
    scores: Mapping[str, Tensor], density: float, distribution: Distribution = "erk", granularity: int = 1
) -> dict[str, Tensor]:
    """Keep round(density * total) weights: per layer by `distribution`, or over all layers at once (`global`)."""
    choices = (*get_args(Rule), "global")
    if distribution not in choices:
        raise ValueError(f"layer densities {distribution!r} are not one of {', '.join(choices)}")
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    if distribution != "global":
        return top_masks(scores, layer_counts(shapes, density, distribution, granularity), granularity)
    total = sum(layer_counts(shapes, density, "uniform", granularity).values()) // granularity
    grouped = {n: s.reshape(s.shape[0] // granularity, granularity, -1).sum(1).flatten() for n, s in scores.items()}
    chosen = highest(torch.cat(list(grouped.values())), total)
    sizes = torch.tensor([len(g) for g in grouped.values()])
    ends = torch.cumsum(sizes, 0)
    kept = torch.searchsorted(chosen.cpu(), ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    counts = {name: int(k) * granularity for name, k in zip(grouped, kept)}
    return top_masks(scores, counts, granularity)
