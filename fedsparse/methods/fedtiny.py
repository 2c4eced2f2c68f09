"""FedTiny: Huang et al., "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023.

Adaptive batch-norm selection chooses the first mask among candidates by the devices' loss; progressive pruning then
adjusts one block of layers at a time, growing where the devices' gradients of inactive weights are largest.

Departures: the candidates' layer densities are ours (the paper leaves them open): candidate 0 has the densities of
`distribution`, candidate c > 0 those times exp(u), u uniform in [-spread, spread] a layer, scaled to the same total;
their weights are the largest |w| of the server's initial model. At least 4 candidates. Blocks are contiguous runs of
the prunable layers, as equal in number as can be. The server is not pretrained unless the run has a public share of
data. A device's gradient is that of its locally trained model, on `growth_batches` batches at once.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.errors import RunError
from fedsparse.federated.growth import check_growth, find_growth, join_groups
from fedsparse.federated.method import Ask, Method, Sections
from fedsparse.federated.seeds import derive, numpy_generator
from fedsparse.nn import prunable, sparse_layers, sparsify
from fedsparse.pruning import (
    Rule,
    Schedule,
    apportion,
    highest,
    layer_counts,
    prune_and_grow,
    score,
    top_masks,
)
from fedsparse.wire import Bitmap, Pairs, PairsSpec, Section, Spec, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

Norm = nn.BatchNorm1d | nn.BatchNorm2d
WORST = 1e6
"""The loss that a device reports of a candidate that diverges on its data."""


@dataclass(frozen=True)
class FedTiny(Method):
    """FedTiny at total density `density`.

    pool: number of candidate masks; 0 means max(4, round(0.1 / density)), the paper's size but at least 4; 1 means no
    selection. interval dT and last T_end: adjustment rounds are t % dT == 0, 0 < t <= T_end. blocks: blocks of
    layers, adjusted in turn from the output to the input. rate: a_l = floor(rate * 2 c(t) K_l). granularity: V of
    Vx1 masks. prune_last: whether the last linear layer is pruned too.
    """

    name: ClassVar[str] = "fedtiny"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.1
    distribution: Rule = "erk"
    pool: Annotated[int, Field(ge=0, le=1000)] = 0
    spread: Annotated[float, Field(ge=0, le=5)] = 0.5
    interval: Annotated[int, Field(ge=1)] = 10
    last: Annotated[int, Field(ge=1)] = 100
    blocks: Annotated[int, Field(ge=1)] = 5
    rate: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    growth_batches: Annotated[int, Field(ge=1)] = 1
    granularity: Annotated[int, Field(ge=1, le=64)] = 1
    prune_last: bool = False

    @property
    def schedule(self) -> Schedule:
        """The adjustment rounds and their cosine decay."""
        return Schedule(self.interval, self.last)

    def prunes(self, model: nn.Module) -> list[str]:
        """All prunable layers."""
        return list(prunable(model, self.prune_last))

    # Before round 0: adaptive batch-norm selection.

    def probe(self, server: Server, ask: Ask) -> None:
        """Keep the candidate mask of lowest weighted loss, with its refreshed norm statistics."""
        best, best_rank = None, (1, math.inf)
        for masks in self._candidates(server):
            missing = 0
            candidate = sparsify(copy.deepcopy(server.model), masks=masks, granularity=self.granularity)
            weights: Sections = {
                "mask": Bitmap(exchange.mask(candidate)),
                "parameters": exchange.narrowed(candidate, server.wire, derive(server.seed, "wire/candidate")),
            }
            if any(isinstance(m, Norm) for m in candidate.modules()):
                expect: dict[str, Spec] = {"buffers": ValuesSpec(size=server.buffer_count, dtype="float32")}
                answers = ask("refresh_norms", weights, expect, None)
                missing, refreshed = answers.declared - answers.accepted, answers.mean("buffers")
                exchange.load_buffers(candidate, refreshed)
                weights = {"buffers": Values(refreshed)}
            answers = ask("measure_loss", weights, {"loss": ValuesSpec(size=1, dtype="float32")}, None)
            missing += answers.declared - answers.accepted
            # A mean over fewer devices is no lower loss, so a candidate that more of them answered comes first.
            rank = (missing, float(answers.mean("loss")))
            if best is None or rank < best_rank:
                best, best_rank = (masks, exchange.buffers(candidate)), rank
        if best is None:
            raise RunError("there is no candidate mask")
        server.set_masks(best[0])
        exchange.load_buffers(server.model, best[1])

    def _candidates(self, server: Server) -> list[dict[str, Tensor]]:
        scores = score.magnitude(server.dense_weights())
        shapes = {name: tuple(s.shape) for name, s in scores.items()}
        first = layer_counts(shapes, self.density, self.distribution, self.granularity)
        counts = [first]
        for c in range(1, self.pool or max(4, round(0.1 / self.density))):
            noise = numpy_generator(server.seed, "candidate", c).uniform(-self.spread, self.spread, len(first))
            shares = {n: first[n] / math.prod(shapes[n]) * math.exp(u) for n, u in zip(first, noise)}
            counts.append(apportion(shares, shapes, self.density, self.granularity))
        return [top_masks(scores, count, self.granularity) for count in counts]

    def refresh_norms(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: the norm statistics of the candidate over all local data, weights frozen."""
        exchange.load(client.model, sections, self.prunes(client.model), self.granularity)
        norms = [m for m in client.model.modules() if isinstance(m, Norm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        client.model.train()
        with torch.no_grad():
            for x, _ in client.batches("refresh"):
                client.model(x)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        return {"buffers": Values(exchange.buffers(client.model))}

    def measure_loss(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: the mean loss of the candidate over all local data, in eval mode."""
        exchange.load(client.model, sections, self.prunes(client.model), self.granularity)
        client.model.eval()
        total, seen = 0.0, 0
        with torch.no_grad():
            for x, y in client.batches("selection loss"):
                total, seen = total + float(self.loss(client, client.model(x), y)) * len(y), seen + len(y)
        mean = total / seen
        return {"loss": Values(torch.tensor([mean if mean < WORST else WORST]))}

    # Adjustment rounds: progressive pruning, a block at a time.

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; in an adjustment round also the a_l inactive weights of largest |gradient|."""
        sections = super().report(client)
        counts = self._counts(client.model, client.round)
        if not counts:
            return sections
        batches = [batch for _, batch in zip(range(self.growth_batches), client.batches("growth"))]
        found = find_growth(client, self, counts, batches)
        groups = join_groups(client.model, {name: growth.groups for name, growth in found.items()})
        gradients = torch.cat([found[name].gradients.cpu() for name in counts])
        wire, size = exchange.beside(client.wire), exchange.group_count(client.model)
        return sections | {"growth": Pairs(groups, gradients, size, wire=wire)}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """In an adjustment round: the pairs of the block, exactly a_l a layer."""
        counts = self._counts(server.model, t)
        if not counts:
            return super().expect(server, t)
        size = exchange.mask_size(server.model, server.names, self.granularity)
        width = None if self.granularity == 1 else self.granularity
        return super().expect(server, t) | {
            "growth": PairsSpec(size=size, count=sum(counts.values()), dtype="float32", width=width)
        }

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse pairs that are not a_l inactive weights in each layer of the block."""
        if isinstance(growth := sections.get("growth"), Pairs):
            groups, active = torch.as_tensor(growth.indices), exchange.mask(server.model)
            check_growth(server.model, "growth", groups, self._counts(server.model, t), active)
        return sections

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask, then grow the top a_l |g~| of the block and prune the a_l lowest |w|."""
        super().update(server, total, t)
        counts = self._counts(server.model, t)
        if not counts:
            return
        groups, gradients = total.pairs("growth")
        found = exchange.split_by_layer(server.model, groups, gradients)
        topologies = {}
        for name, count in counts.items():
            candidates, g = found[name]
            size = g.abs() if g.dim() == 1 else g.abs().sum(1)
            layer = server.layers[name]
            grown = candidates[highest(size, count)]
            topologies[name] = prune_and_grow(layer.topology, layer.values.detach(), grown.to(layer.values.device))
        server.change_masks(topologies)

    def _counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """a_l in groups for each layer of the block of round t; empty where nothing is to be adjusted."""
        if not self.schedule.adjusts(t):
            return {}
        layers = sparse_layers(model)
        blocks = np.array_split(np.array(list(layers), dtype=object), min(self.blocks, len(layers)))
        block = blocks[-1 - self.schedule.index(t) % len(blocks)]
        share = self.rate * 2 * self.schedule.rate(t)
        counts = {}
        for name in block:
            topology = layers[name].topology
            inactive = topology.numel - topology.nnz
            counts[name] = min(int(share * topology.nnz), inactive) // self.granularity
        return {name: count for name, count in counts.items() if count > 0}
