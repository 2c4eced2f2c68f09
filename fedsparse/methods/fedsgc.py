"""FedSGC: Tian et al., "Gradient-Congruity Guided Federated Sparse Training", ICLR 2024 workshop.

As FedDST, but clients prefer to prune weights that move against the server's last movement and to grow weights whose
gradient follows it. The server broadcasts that movement as a ternary map D.

Departures: an inactive weight does not move, so its local direction is ours, sign(-g); of active ones it is
sign(w_local - w_t). At a coordinate that nobody had active in an adjustment round D is sign(-sum p_k g) over the k_l
largest gradients a layer among the weights that stay inactive, which each client reports in that round (index and
bfloat16 value, beside the mask); it stays so until the next adjustment, since nothing newer is known. Everywhere else D
is sign(w_t - w_{t-1}) of the models that the server sends, 0 where neither has the weight. A group of V weights goes
the way of the sum over its weights. Clients whose report was refused count as not sampled. The paper leaves T_end open:
two thirds of the rounds, as in the authors' code, and so does alpha. The epochs before the adjustment are ours
(`adjust_after`); with one local epoch no weight has moved by then, and pruning is by |w| alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from fedsparse.federated import coordinates, exchange
from fedsparse.federated.client_masks import ClientMasksMethod
from fedsparse.federated.growth import check_growth, find_growth, join_groups
from fedsparse.federated.method import Sections
from fedsparse.nn import sparse_layers
from fedsparse.pruning import group_sums, lowest_preferring, with_groups, without_groups
from fedsparse.wire import Bitmap, Pairs, PairsSpec, Section, Spec, Ternary, Values

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


@dataclass(frozen=True)
class FedSGC(ClientMasksMethod):
    """FedSGC at total density `density`; see ClientMasksMethod for the fields that are not here.

    prune_guided lambda and grow_guided beta: the shares of the k_l weights that D may choose; 0 and 0 is FedDST on the
    client. idle: the rounds in which clients not sampled count in the mean with the old model: `always` (the paper),
    `adjusting`, or `never` (FedDST's server). T_end (`last`) is two thirds of the rounds.
    """

    name: ClassVar[str] = "fedsgc"
    end: ClassVar[float] = 2 / 3

    interval: Annotated[int, Field(ge=1)] = 20
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    prune_guided: Annotated[float, Field(ge=0, le=1)] = 0.5
    grow_guided: Annotated[float, Field(ge=0, le=1)] = 0.5
    idle: Literal["always", "adjusting", "never"] = "always"

    def start(self, server: Server) -> None:
        """Start with maps of no direction, int8 by coordinate: D, and the part of it that gradients gave."""
        super().start(server)
        groups = exchange.mask_size(server.model, server.names, self.granularity)
        for state in ("direction", "reported"):
            server.state[state] = torch.zeros(groups * self.granularity, dtype=torch.int8)

    def broadcast(self, server: Server, t: int) -> dict[str, Section]:
        """In an adjustment round: D, at most two bits a weight."""
        if not self.counts(server.model, t, server.training.rounds):
            return {}
        return {"direction": Ternary(server.state["direction"])}

    def adjust(self, client: Client, counts: dict[str, int]) -> None:
        """Prune first where the weight moved against D, grow first where the gradient follows D."""
        layers, directions = sparse_layers(client.model), _directions(client)
        sent = cast(Values, client.received["parameters"]).tensor()
        starts, _ = exchange.split_parameters(client.model, sent)
        for name, count in counts.items():
            topology, values = layers[name].topology, layers[name].values.detach()
            moved = (values - starts[name].to(values)).sign()
            against = group_sums(topology, moved * topology.pack(directions[name])) < 0
            size = group_sums(topology, values.abs())
            pruned = lowest_preferring(size, against, int(self.prune_guided * count + 1e-9), count)
            client.change_mask(layers[name], without_groups(topology, pruned))
        shares = {name: int(self.grow_guided * count + 1e-9) for name, count in counts.items()}
        batches = self.last_batches(client)
        guided = find_growth(client, self, shares, batches, directions)
        # Of the 2 k_l largest at least k_l are not grown: those are reported.
        largest = find_growth(client, self, {name: 2 * count for name, count in counts.items()}, batches)
        reported = {}
        for name, count in counts.items():
            rest = largest[name].without(guided[name].groups, count - len(guided[name].groups))
            grown = torch.cat([guided[name].groups, rest.groups])
            reported[name] = largest[name].without(grown, count)
            client.change_mask(layers[name], with_groups(layers[name].topology, grown))
        client.memory["groups"] = join_groups(client.model, {name: r.groups for name, r in reported.items()})
        client.memory["gradients"] = torch.cat([reported[name].gradients for name in layers if name in reported]).cpu()

    def report(self, client: Client) -> dict[str, Section]:
        """In an adjustment round besides the mask: the largest gradients of weights that stayed inactive."""
        sections = super().report(client)
        if "mask" not in sections:
            return sections
        size = exchange.group_count(client.model)
        pairs = Pairs(client.memory["groups"], client.memory["gradients"], size, wire="bf16")
        return sections | {"gradients": pairs}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """In an adjustment round besides the mask: k_l gradients a layer."""
        counts = self.counts(server.model, t, server.training.rounds)
        if not counts:
            return super().expect(server, t)
        size = exchange.mask_size(server.model, server.names, self.granularity)
        width = None if self.granularity == 1 else self.granularity
        return super().expect(server, t) | {"gradients": PairsSpec(size, count=sum(counts.values()), width=width)}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse gradients that are not of k_l weights a layer outside the client's own mask."""
        mask, gradients = sections.get("mask"), sections.get("gradients")
        if isinstance(mask, Bitmap) and isinstance(gradients, Pairs):
            counts = self.counts(server.model, t, server.training.rounds)
            check_growth(server.model, "gradients", torch.as_tensor(gradients.indices), counts, mask.bits)
        return super().digest(server, sections, t)

    def update(self, server: Server, total: Total, t: int) -> None:
        """The mean with the idle clients' old model, in an adjustment round per coordinate; then D by its movement."""
        before = coordinates.active(server.model)
        adjusting = bool(self.counts(server.model, t, server.training.rounds))
        counted = self.idle == "always" or (self.idle == "adjusting" and adjusting)
        idle = sum(server.samples) - total.accepted if counted else 0
        if adjusting:
            merged = coordinates.merge(server, total, idle)
            groups, gradients = total.pairs("gradients")
            reported = torch.zeros_like(server.state["reported"])
            reported[coordinates.of_groups(server.model, groups).flatten()] = _sign(-gradients.flatten())
            server.state["reported"] = reported.index_fill_(0, merged.places, 0)
            coordinates.load_largest(server, merged)
        else:
            now = {"parameters": exchange.parameters(server.model), "buffers": exchange.buffers(server.model)}
            server.load(*(coordinates.mean_with_idle(total, name, old, idle) for name, old in now.items()))
        places, moved = coordinates.movement(before, server.model)
        server.state["direction"] = direction = server.state["reported"].clone()
        direction[places] = torch.where(direction[places] != 0, direction[places], _sign(moved))


def _sign(numbers: Tensor) -> Tensor:
    return numbers.sign().to(torch.int8)


def _directions(client: Client) -> dict[str, Tensor]:
    """D as the client received it: int8 of each layer's dense shape."""
    signs = torch.as_tensor(cast(Ternary, client.received["direction"]).signs)
    return coordinates.split(client.model, signs.to(client.device))
