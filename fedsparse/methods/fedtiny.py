"""FedTiny: Huang et al., "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023.

Adaptive batch-norm selection chooses the first mask among candidates by the devices' loss; progressive pruning then
adjusts one block of layers at a time, growing where the devices' gradients of inactive weights are largest. E and B of
`training` are the paper's, the optimizer's settings are ours.

Departures: the candidates' layer densities are ours (the paper leaves them open): candidate 0 has the densities of
`distribution`, candidate c > 0 those times exp(u), u uniform in [-spread, spread] a layer, scaled to the same total;
their weights are the largest |w| of the server's initial model. At least 4 candidates. Blocks are contiguous runs of
the prunable layers, as equal in number as can be. The server is not pretrained unless the run has a public share of
data. A device's gradient is that of its locally trained model, over `growth_batches` batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.errors import RunError
from fedsparse.federated.loss import mean_loss
from fedsparse.federated.method import Ask, Sections
from fedsparse.federated.seeds import derive, numpy_generator
from fedsparse.federated.server_growth import ServerGrowthMethod
from fedsparse.nn import batch_norms, refresh_norms, sparsify
from fedsparse.pruning import Rule, apportion, layer_counts, prune_and_grow, score, top_masks
from fedsparse.wire import Bitmap, Section, Spec, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

WORST = 1e6
"""The loss that a device reports of a candidate that diverges on its data."""


@dataclass(frozen=True)
class FedTiny(ServerGrowthMethod):
    """FedTiny at total density `density`; see ServerGrowthMethod and PruningMethod for the fields that are not here.

    pool: number of candidate masks; 0 means max(4, round(0.1 / density)), the paper's size but at least 4; 1 means no
    selection. blocks: blocks of layers, adjusted in turn from the output to the input. rate: a_l =
    floor(rate * 2 c(t) K_l).
    """

    name: ClassVar[str] = "fedtiny"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 5, "batch_size": 64}
    density: Annotated[float, Field(gt=0, lt=1)] = 0.1
    distribution: Rule = "erk"
    pool: Annotated[int, Field(ge=0, le=1000)] = 0
    spread: Annotated[float, Field(ge=0, le=5)] = 0.5
    last: Annotated[int, Field(ge=1)] = 100
    blocks: Annotated[int, Field(ge=1)] = 5
    rate: Annotated[float, Field(gt=0, le=0.5)] = 0.15

    # Before round 0: adaptive batch-norm selection.

    def probe(self, server: Server, ask: Ask) -> None:
        """Keep the candidate mask of lowest weighted loss, with its refreshed norm statistics."""
        best, best_rank = None, (1, math.inf)
        for masks in self._candidates(server):
            missing = 0
            candidate = sparsify(
                copy.deepcopy(server.model), masks=masks, granularity=self.granularity, memory=server.training.memory
            )
            weights: Sections = {
                "mask": Bitmap(exchange.mask_bits(candidate)),
                "parameters": exchange.narrowed(candidate, server.wire, derive(server.seed, "wire/candidate")),
            }
            if batch_norms(candidate):
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
        names, memory = self.prunes(client.model), client.training.memory
        exchange.load(client.model, sections, names, self.granularity, memory)
        refresh_norms(client.model, (x for x, _ in client.batches("refresh")))
        return {"buffers": Values(exchange.buffers(client.model))}

    def measure_loss(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: the mean loss of the candidate over all local data, in eval mode."""
        names, memory = self.prunes(client.model), client.training.memory
        exchange.load(client.model, sections, names, self.granularity, memory)
        mean = mean_loss(client.model.eval(), client.batches("selection loss"))
        return {"loss": Values(torch.tensor([mean if mean < WORST else WORST]))}

    # Adjustment rounds: progressive pruning, a block at a time.

    def adjustments(self, rounds: int) -> list[int]:
        """The first adjustment round of each block."""
        return [t for t in range(rounds) if self.adjusts(t, rounds)][: self.blocks]

    def counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """a_l in groups for each layer of the block of round t; empty where nothing is to be adjusted."""
        if not self.schedule.adjusts(t):
            return {}
        counts = self.shares(model, self.rate * 2 * self.schedule.rate(t))
        blocks = np.array_split(np.array(list(counts), dtype=object), min(self.blocks, len(counts)))
        block = blocks[-1 - self.schedule.index(t) % len(blocks)]
        return {name: counts[name] for name in block if counts[name] > 0}

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask, then grow the top a_l |g~| of the block and prune the a_l lowest |w|."""
        super().update(server, total, t)
        topologies = {}
        for name, grown in self.best(server, total, self.counts(server.model, t)).items():
            layer = server.layers[name]
            topologies[name] = prune_and_grow(layer.topology, layer.values.detach(), grown.to(layer.values.device))
        if topologies:
            server.change_masks(topologies)
