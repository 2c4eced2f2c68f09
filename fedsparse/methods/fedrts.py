"""FedRTS: Huang et al., "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS 2025.

Every weight has a Beta posterior of being worth its place. It is updated each round from the aggregated weights and
from what each client would keep, and in adjustment rounds from the inactive weights that clients would grow; the new
mask is a sample from the posteriors.

Departures: none known in the rule. With granularity V the posteriors are of groups. A layer with fewer than k_l
inactive weights is asked for as many. After the last adjustment the posteriors are no longer updated, since nothing
reads them. A client's gradient is that of its locally trained model, on `growth_batches` batches at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.growth import check_growth, find_growth, join_groups
from fedsparse.federated.masked_method import MaskedMethod
from fedsparse.federated.method import Sections
from fedsparse.federated.seeds import numpy_generator
from fedsparse.nn import sparse_layers
from fedsparse.pruning import Schedule, active_groups, from_groups, group_sums, highest
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Indices, IndicesSpec, Section, Spec, Values

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


@dataclass(frozen=True)
class FedRTS(MaskedMethod):
    """FedRTS at total density `density`; see MaskedMethod for how the first mask is chosen.

    interval dT and last T_end: adjustment rounds are t % dT == 0, 0 < t <= T_end. rate alpha_adj:
    k_l = floor(rate * c(t) * K_l), kappa_l = K_l - k_l. fusion gamma: the weight of the aggregated model's outcome
    against the clients'; 1 leaves the clients' tops unused. strength lambda: how much a round adds to a posterior.
    """

    name: ClassVar[str] = "fedrts"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.2
    interval: Annotated[int, Field(ge=1)] = 10
    last: Annotated[int, Field(ge=1)] = 300
    rate: Annotated[float, Field(gt=0, le=1)] = 0.4
    fusion: Annotated[float, Field(ge=0, le=1)] = 0.5
    strength: Annotated[float, Field(gt=0)] = 10.0
    growth_batches: Annotated[int, Field(ge=1)] = 1

    @property
    def schedule(self) -> Schedule:
        """The adjustment rounds and their cosine decay."""
        return Schedule(self.interval, self.last)

    def start(self, server: Server) -> None:
        """Beta(1, 1) for every group of every layer: `alpha/<layer>` and `beta/<layer>`, float32 [groups]."""
        for name, weight in server.dense_weights().items():
            for parameter in ("alpha", "beta"):
                server.state[f"{parameter}/{name}"] = torch.ones(weight.numel() // self.granularity)
        super().start(server)

    def counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """k_l in groups of each layer at round t."""
        share = self.rate * self.schedule.rate(t)
        topologies = {name: layer.topology for name, layer in sparse_layers(model).items()}
        return {
            name: min(int(share * topology.nnz), topology.numel - topology.nnz) // self.granularity
            for name, topology in topologies.items()
        }

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; in an adjustment round also which k_l inactive weights have the largest |g|."""
        sections = super().report(client)
        if not self.schedule.adjusts(client.round):
            return sections
        batches = [b for _, b in zip(range(self.growth_batches), client.batches("growth"))]
        found = find_growth(client, self, self.counts(client.model, client.round), batches)
        groups = join_groups(client.model, {name: growth.groups for name, growth in found.items()})
        return sections | {"growth": Indices(groups, exchange.group_count(client.model))}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """In an adjustment round: k_l indices a layer."""
        if not self.schedule.adjusts(t):
            return super().expect(server, t)
        size = exchange.mask_size(server.model, server.names, self.granularity)
        count = sum(self.counts(server.model, t).values())
        return super().expect(server, t) | {"growth": IndicesSpec(size, count=count)}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse indices that are not k_l inactive weights a layer; add what the client would keep, its top kappa_l."""
        growth = sections.get("growth")
        if isinstance(growth, Indices):
            groups, counts = torch.as_tensor(growth.indices), self.counts(server.model, t)
            check_growth(server.model, "growth", groups, counts, exchange.mask(server.model))
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
                self._learn(server, name, inactive, self.fusion / 2 + (1 - self.fusion) * outcome[inactive])
            server.change_masks(self._sample(server, t))

    def _kept(self, server: Server, values: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        """Whether each active group is among the layer's kappa_l of largest summed |w|: bool [K_l / V]."""
        kept = {}
        for name, count in self.counts(server.model, t).items():
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
            a, b = (server.state[f"{parameter}/{name}"].double().numpy() for parameter in ("alpha", "beta"))
            drawn = torch.from_numpy(generator.beta(a, b))
            groups = highest(drawn, layer.topology.nnz // self.granularity)
            topologies[name] = from_groups(groups, layer.weight_shape, self.granularity)
        return topologies
