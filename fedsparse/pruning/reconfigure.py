"""Masks whose size is an output: the most risk reduction per second of a round.

Source: Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", TNNLS 2022, Algorithm 2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsparse.pruning.select import active_groups, from_groups, group_sums, highest
from fedsparse.topology import Topology


def reconfigure(
    topologies: Mapping[str, Topology],
    values: Mapping[str, Tensor],
    squares: Tensor,
    seconds: Tensor,
    free: float,
    max_density: float = 1.0,
) -> dict[str, Topology]:
    """New topologies by layer, of greatest Gamma(M) = (G + sum of g_j^2) / (c + sum of t_j) over the groups j in M.

    topologies, values [nnz]: the layers as they are. squares: g_j^2 of each group, active or not, layer after layer,
    then G, what the weights that are never pruned add: float [groups + 1]. seconds: t_j of one weight of each layer,
    above 0, then c: float64 [layers + 1].

    In each layer the active groups of largest |w| are protected, all but floor(free * their number). The other groups
    of all layers are taken in descending order of g_j^2 / t_j (ties to the earlier layer, then the lower index) while
    the ratio is at least Gamma of what was taken before, and above 0, which gives the maximum; and while no more than
    `max_density` of all groups are active. Protected groups stay whatever `max_density` is, so that one call shrinks a
    layer by the share `free` at most.
    """
    protected = torch.cat([_protected(t, values[name].detach(), free) for name, t in topologies.items()])
    sizes = [t.numel // t.granularity for t in topologies.values()]
    if (len(squares), len(seconds)) != (len(protected) + 1, len(sizes) + 1):
        raise ValueError(
            f"{len(protected)} groups of {len(sizes)} layers need one more squares and seconds, "
            f"not {len(squares)} and {len(seconds)}"
        )
    gains = squares.double()
    weights = torch.tensor([t.granularity for t in topologies.values()] + [1])
    costs = torch.repeat_interleave(seconds.double() * weights, torch.tensor([*sizes, 1]))
    room = max(0, int(max_density * len(protected)) - int(protected.sum()))
    chosen = protected.clone()
    chosen[_best_first(gains, costs, protected)[:room]] = True
    return {
        name: from_groups(part.nonzero().flatten(), t.shape, t.granularity)
        for (name, t), part in zip(topologies.items(), torch.split(chosen, sizes))
    }


def _protected(topology: Topology, values: Tensor, free: float) -> Tensor:
    """Bool [groups]: the active groups of largest |w|."""
    active = active_groups(topology)
    kept = active[highest(group_sums(topology, values.abs()), len(active) - int(free * len(active)))]
    protected = torch.zeros(topology.numel // topology.granularity, dtype=torch.bool)
    protected[kept.cpu()] = True
    return protected


def _best_first(gains: Tensor, costs: Tensor, protected: Tensor) -> Tensor:
    """The groups that raise Gamma, best first: those before the first whose ratio is below what Gamma is by then."""
    always = torch.cat([protected, torch.ones(1, dtype=torch.bool)])
    gain, cost = gains[always].sum(), costs[always].sum()
    # Gamma only rises, so what is below its first value is out, and need not be sorted.
    able = (~always & (gains > 0) & (gains * cost >= gain * costs)).nonzero().flatten()
    order = able[torch.sort(gains[able] / costs[able], descending=True, stable=True).indices]
    g, t = gains[order], costs[order]
    below = (g * (cost + t.cumsum(0) - t) < (gain + g.cumsum(0) - g) * t).nonzero().flatten()
    return order[: int(below[0])] if len(below) else order
