"""FedRTS: Huang et al., "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS 2025.

Every weight has a Beta posterior of being worth its place. It is updated each round from the aggregated weights and
from what each client would keep, and in adjustment rounds from the inactive weights that clients would grow; the new
mask is a sample from the posteriors. E, B and lr of `training` are the paper's, momentum and weight decay are ours.

Departures: none known in the rule. With granularity V the posteriors are of groups. A layer with fewer than k_l
inactive weights is asked for as many. After the last adjustment the posteriors are no longer updated, since nothing
reads them. A client's gradient is that of its locally trained model, over `growth_batches` batches. The server holds
two float32 factors a group, 8 bytes a weight whatever the density: they add up outcomes of the whole run, which half
precision would round away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.masked_method import MaskedMethod
from fedsparse.federated.method import Sections
from fedsparse.federated.seeds import numpy_generator
from fedsparse.federated.server_growth import ServerGrowthMethod
from fedsparse.pruning import active_groups, from_groups, group_sums, highest, highest_of
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Values

if TYPE_CHECKING:
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

DRAWN = 1 << 17
"""Posteriors that are drawn from at once."""


@dataclass(frozen=True)
class FedRTS(MaskedMethod, ServerGrowthMethod):
    """FedRTS at total density `density`; see MaskedMethod for how the first mask is chosen.

    See ServerGrowthMethod for interval, last and growth_batches. rate alpha_adj: k_l = floor(rate * c(t) * K_l),
    kappa_l = K_l - k_l. fusion gamma: the weight of the aggregated model's outcome
    against the clients'; 1 leaves the clients' tops unused. strength lambda: how much a round adds to a posterior.
    """

    name: ClassVar[str] = "fedrts"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 5, "batch_size": 64, "lr": 0.01}
    sends_gradients: ClassVar[bool] = False

    density: Annotated[float, Field(gt=0, lt=1)] = 0.2
    rate: Annotated[float, Field(gt=0, le=1)] = 0.4
    fusion: Annotated[float, Field(ge=0, le=1)] = 0.5
    strength: Annotated[float, Field(gt=0)] = 10.0

    def start(self, server: Server) -> None:
        """Beta(1, 1) for every group of every layer: `alpha/<layer>` and `beta/<layer>`, float32 [groups]."""
        for name, weight in server.dense_weights().items():
            for parameter in ("alpha", "beta"):
                server.state[f"{parameter}/{name}"] = torch.ones(weight.numel() // self.granularity)
        super().start(server)

    def counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """k_l in groups of each layer; empty where nothing is to be adjusted."""
        return self.challengers(model, t) if self.schedule.adjusts(t) else {}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse indices that are not k_l inactive weights a layer; add what the client would keep, its top kappa_l."""
        sections = super().digest(server, sections, t)
        parameters = sections.get("parameters")
        if t > self.last or not isinstance(parameters, Values):
            return sections
        values, _ = exchange.split_parameters(server.model, parameters.tensor())
        kept = self._kept(server, values, t)
        return {**sections, "kept": Bitmap(torch.cat(list(kept.values())))}

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask; then the posteriors, and in an adjustment round a mask sampled from them."""
        super().update(server, total, t)
        if t > self.last:
            return
        ours = self._kept(server, {name: layer.values.detach().cpu() for name, layer in server.layers.items()}, t)
        theirs = total.mean("kept").split([len(kept) for kept in ours.values()])
        for (name, kept), agreed in zip(ours.items(), theirs):
            active = active_groups(server.layers[name].topology).cpu()
            self._learn(server, name, active, self.fusion * kept + (1 - self.fusion) * agreed)
        if self.schedule.adjusts(t):
            for name, (groups, agreed) in exchange.split_by_layer(server.model, *total.pairs("growth")).items():
                outcome = torch.zeros_like(server.state[f"alpha/{name}"])
                outcome[groups] = agreed
                inactive = torch.ones(len(outcome), dtype=torch.bool)
                inactive[active_groups(server.layers[name].topology).cpu()] = False
                outcome.mul_(1 - self.fusion).add_(self.fusion / 2)
                for parameter, numbers in (("alpha", outcome), ("beta", 1 - outcome)):
                    server.state[f"{parameter}/{name}"] += numbers.mul_(self.strength).where(inactive, 0.0)
            server.change_masks(self._sample(server, t))

    def challengers(self, model: nn.Module, t: int) -> dict[str, int]:
        """k_l in groups of each layer at round t, an adjustment round or not."""
        return self.shares(model, self.rate * self.schedule.rate(t))

    def _kept(self, server: Server, values: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        """Whether each active group is among the layer's kappa_l of largest summed |w|: bool [K_l / V]."""
        kept = {}
        for name, count in self.challengers(server.model, t).items():
            size = group_sums(server.layers[name].topology.to("cpu"), values[name].abs())
            kept[name] = torch.zeros(len(size), dtype=torch.bool)
            kept[name][highest(size, len(size) - count)] = True
        return kept

    def _learn(self, server: Server, name: str, groups: Tensor, outcome: Tensor) -> None:
        """(a_i, b_i) += lambda (X_i, 1 - X_i)."""
        server.state[f"alpha/{name}"][groups] += self.strength * outcome
        server.state[f"beta/{name}"][groups] += self.strength * (1 - outcome)

    def _sample(self, server: Server, t: int) -> dict[str, Topology]:
        """The K_l highest of xi_i ~ Beta(a_i, b_i) in each layer."""
        generator, topologies = numpy_generator(server.seed, "thompson sampling", t), {}
        for name, layer in server.layers.items():
            parts = zip(*(server.state[f"{parameter}/{name}"].split(DRAWN) for parameter in ("alpha", "beta")))
            drawn = (torch.from_numpy(generator.beta(*(part.double().numpy() for part in pair))) for pair in parts)
            groups = highest_of(drawn, layer.topology.nnz // self.granularity)
            topologies[name] = from_groups(groups, layer.weight_shape, self.granularity)
        return topologies
