"""Which weights of one layer are active: exact counts, in groups, ties to the lower index.

A *group* is what is kept or pruned together: one weight, or with granularity V the V weights of one column in V
consecutive output channels. Its index is (n // V) * row_length + column; with V = 1 this is the flat weight index.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedsparse.ops import changed, topk
from fedsparse.topology import Topology


def lowest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` lowest scores [n], sorted int64; of equal scores the lower position comes first."""
    return topk(-scores, min(count, len(scores)))


def highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores [n], sorted int64; of equal scores the lower position comes first."""
    return topk(scores, min(count, len(scores)))


def highest_of(parts: Iterable[Tensor], count: int) -> Tensor:
    """As `highest` of the parts' concatenation, of which no more than `count` scores and one part exist at a time."""
    best, places, start = torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0
    for part in parts:
        scores = torch.cat([best.to(part), part])
        everywhere = torch.cat([places.to(part.device), torch.arange(start, start + len(part), device=part.device)])
        kept = highest(scores, count)
        best, places, start = scores[kept], everywhere[kept], start + len(part)
    return places


def lowest_preferring(scores: Tensor, preferred: Tensor, share: int, count: int) -> Tensor:
    """Positions of `count` scores [n]: up to `share` lowest of `preferred` (bool [n]), then the lowest of all others.

    Sorted int64; of equal scores the lower position comes first.
    """
    candidates = preferred.nonzero().flatten()
    first = candidates[lowest(scores[candidates], min(share, count))]
    left = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    left[first] = False
    others = left.nonzero().flatten()
    return torch.sort(torch.cat([first, others[lowest(scores[others], count - len(first))]])).values


def top_mask(scores: Tensor, count: int, granularity: int = 1) -> Tensor:
    """Bool mask of the scores' shape (N, ...) with exactly `count` weights: the highest scores, summed over groups."""
    if scores.isnan().any():
        raise ValueError("a score is NaN, so the highest scores are not defined")
    if not 0 <= count <= scores.numel() or count % granularity:
        raise ValueError(f"cannot keep {count} of {scores.numel()} weights in groups of {granularity}")
    grouped = scores.reshape(scores.shape[0] // granularity, granularity, -1).sum(1)
    mask = torch.zeros(grouped.numel(), dtype=torch.bool, device=scores.device)
    mask[highest(grouped.flatten(), count // granularity)] = True
    return mask.view_as(grouped).repeat_interleave(granularity, dim=0).reshape(scores.shape)


def active_groups(topology: Topology) -> Tensor:
    """The sorted int64 indices [G] of the topology's active groups, G = nnz / V."""
    return topology.groups()


def group_sums(topology: Topology, values: Tensor) -> Tensor:
    """Sum values [nnz] over each active group: [G], in the order of `active_groups`."""
    if topology.granularity == 1:
        return values
    return values.new_zeros(topology.cols.shape[0]).index_add_(0, topology.group_of_value(), values)


def from_groups(groups: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
    """The topology whose active groups are `groups` (int64, any order, no duplicates)."""
    return Topology.from_groups(torch.sort(groups).values, shape, granularity)


def without_groups(topology: Topology, positions: Tensor) -> Topology:
    """Drop the active groups at `positions` (strictly increasing) in `active_groups`."""
    return changed(topology, dropped=positions)


def with_groups(topology: Topology, groups: Tensor) -> Topology:
    """Add inactive groups; ValueError where one is active."""
    return changed(topology, grown=groups)


def keep_largest(topology: Topology, values: Tensor, count: int) -> Topology:
    """Keep the `count` active groups of highest summed |w|; values: [nnz]. ValueError where fewer are active."""
    active = topology.cols.shape[0]
    if active < count:
        raise ValueError(f"{count} groups are to be kept, but only {active} are active")
    dropped = torch.ones(active, dtype=torch.bool, device=topology.device)
    dropped[highest(group_sums(topology, values.abs()), count)] = False
    return changed(topology, dropped.nonzero().flatten())


def lowest_values(topology: Topology, values: Tensor, count: int) -> Tensor:
    """Positions in values [nnz] of the weights of the `count` active groups of lowest summed |w|: sorted int64."""
    chosen = torch.zeros(topology.cols.shape[0], dtype=torch.bool, device=topology.device)
    chosen[lowest(group_sums(topology, values.abs()), count)] = True
    return chosen[topology.group_of_value()].nonzero().flatten()


def prune_and_grow(topology: Topology, values: Tensor, grown: Tensor) -> Topology:
    """Drop the len(grown) active groups of lowest summed |w| and add the inactive groups `grown`.

    values: [nnz]. grown: int64 [a], distinct and inactive. The number of active weights does not change. Only weights
    that were active before can be dropped.

    Raises ValueError if a group of `grown` is active, or more are grown than are active.
    """
    active = topology.cols.shape[0]
    if len(grown) > active:
        raise ValueError(f"{len(grown)} groups are to be grown, but only {active} are active")
    return changed(topology, lowest(group_sums(topology, values.abs()), len(grown)), grown)
