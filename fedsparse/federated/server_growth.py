"""What methods share whose server grows weights by what the clients report of inactive ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.growth import check_growth, find_growth, growth_batches, join_groups
from fedsparse.federated.method import Sections
from fedsparse.federated.pruning_method import PruningMethod
from fedsparse.nn import sparse_layers
from fedsparse.pruning import Decay, Schedule, highest
from fedsparse.wire import Indices, IndicesSpec, Pairs, PairsSpec, Section, Spec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


@dataclass(frozen=True)
class ServerGrowthMethod(PruningMethod, ABC):
    """In adjustment rounds every client reports the a_l inactive groups of largest |gradient| of each layer.

    interval dT and last T_end: adjustment rounds are t % dT == 0, 0 < t <= T_end. decay: of c(t) from 1 to 0 along
    them. growth_batches: minibatches of the gradient, which is that of the mean loss over them (see `find_growth`); 0
    for all of the client's. The gradient is that of the locally trained model.
    """

    sends_gradients: ClassVar[bool] = True
    """Whether the gradients travel beside the indices."""

    interval: Annotated[int, Field(ge=1)] = 10
    last: Annotated[int, Field(ge=1)] = 300
    decay: Decay = "cosine"
    growth_batches: Annotated[int, Field(ge=0)] = 1

    @property
    def schedule(self) -> Schedule:
        """The adjustment rounds and their decay c(t)."""
        return Schedule(self.interval, self.last, self.decay)

    def adjusts(self, t: int, rounds: int) -> bool:
        """Whether 0 < t <= T_end and t % dT == 0."""
        return self.schedule.adjusts(t)

    @abstractmethod
    def counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """a_l in groups of each layer that round t adjusts; empty where it adjusts none."""

    def shares(self, model: nn.Module, share: float) -> dict[str, int]:
        """floor(share * K_l) in groups of every layer, at most as many as are inactive."""
        topologies = {name: layer.topology for name, layer in sparse_layers(model).items()}
        return {n: min(int(share * t.nnz + 1e-9), t.numel - t.nnz) // self.granularity for n, t in topologies.items()}

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; in an adjustment round also `growth`."""
        sections, counts = super().report(client), self.counts(client.model, client.round)
        if not counts:
            return sections
        found = find_growth(client, self, counts, growth_batches(client, self.growth_batches))
        groups = join_groups(client.model, {name: growth.groups for name, growth in found.items()})
        size = exchange.group_count(client.model)
        if not self.sends_gradients:
            return sections | {"growth": Indices(groups, size)}
        gradients = torch.cat([found[name].gradients.cpu() for name in sparse_layers(client.model) if name in found])
        return sections | {"growth": Pairs(groups, gradients, size, wire=exchange.beside(client.wire))}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """In an adjustment round: a_l groups a layer."""
        specs, counts = super().expect(server, t), self.counts(server.model, t)
        if not counts:
            return specs
        size, count = exchange.group_count(server.model), sum(counts.values())
        if not self.sends_gradients:
            return specs | {"growth": IndicesSpec(size, count=count)}
        width = None if self.granularity == 1 else self.granularity
        return specs | {"growth": PairsSpec(size=size, count=count, dtype="float32", width=width)}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse growth that is not a_l inactive groups in each layer."""
        if isinstance(growth := sections.get("growth"), Pairs | Indices):
            groups, active = torch.as_tensor(growth.indices), exchange.mask_bits(server.model)
            check_growth(server.model, "growth", groups, self.counts(server.model, t), active)
        return sections

    def best(self, server: Server, total: Total, counts: dict[str, int]) -> dict[str, Tensor]:
        """The `counts[name]` groups of largest |g~|, g~ = sum p_k g~_k (missing = 0), of each layer: int64."""
        if not counts:
            return {}
        found = exchange.split_by_layer(server.model, *total.pairs("growth"))
        best = {}
        for name, count in counts.items():
            groups, gradients = found[name]
            best[name] = groups[highest(gradients.abs().reshape(len(groups), -1).sum(1), count)]
        return best
