"""Pure functions of pruning: layer densities, scores, selection, schedules. They know no clients and no kernels."""

from fedsparse.pruning.density import Rule, apportion, layer_counts
from fedsparse.pruning.masks import Distribution, masks_from_scores, top_masks
from fedsparse.pruning.reconfigure import reconfigure
from fedsparse.pruning.schedule import Decay, Schedule
from fedsparse.pruning.select import (
    active_groups,
    from_groups,
    group_sums,
    highest,
    highest_of,
    keep_largest,
    lowest,
    lowest_preferring,
    lowest_values,
    prune_and_grow,
    top_mask,
    with_groups,
    without_groups,
)

__all__ = [
    "Decay",
    "Distribution",
    "Rule",
    "Schedule",
    "active_groups",
    "apportion",
    "from_groups",
    "group_sums",
    "highest",
    "highest_of",
    "keep_largest",
    "layer_counts",
    "lowest",
    "lowest_preferring",
    "lowest_values",
    "masks_from_scores",
    "prune_and_grow",
    "reconfigure",
    "top_mask",
    "top_masks",
    "with_groups",
    "without_groups",
]
