"""SSFL: Ohib et al., "SSFL: Discovering Sparse Unified Subnetworks at Initialization for Efficient Federated Learning",
2024 (arXiv 2405.09037).

Before round 0 every client scores each weight of the initial dense model by its saliency |g w| on its own data; the
server averages the scores, keeps the weights of highest score, and FedAvg trains on that mask, which never changes.

Departures: scores are weighted by n_k (the authors' code weights clients alike). No dense warm-up rounds before the
mask, and clients whose answer is refused are left out. Ours: with several `batches` g is the gradient of their mean
loss; scores travel times the number of weights, so that half precision holds them, and at most as large as their
carrier or the server's sums hold; layer densities of `distribution` as
an alternative to the paper's ranking over all layers, which may empty a layer at low densities. A client holds its
dense gradient and scores once, for this; the server only the sum of scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from fedsparse.federated import exchange
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.method import Ask, Sections
from fedsparse.federated.pruning_method import PruningMethod
from fedsparse.federated.total import LIMIT
from fedsparse.federated.validate import UpdateError
from fedsparse.pruning import Distribution, masks_from_scores, score
from fedsparse.wire import Section, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server

_LARGEST = {"fp16": 65504.0, "fp32": 0.999 * LIMIT}
"""The largest score that travels: what half precision holds, and what can be summed."""


@dataclass(frozen=True)
class SSFL(PruningMethod):
    """SSFL at total density `density`.

    distribution: `global`, by score over all layers, or layer densities `uniform`, `er`, `erk`. batches: minibatches
    that a client scores on. score_wire: how scores travel. Vx1 masks are scored by sums over the V weights.
    """

    name: ClassVar[str] = "ssfl"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.5
    distribution: Distribution = "global"
    batches: Annotated[int, Field(ge=1)] = 1
    score_wire: Literal["fp32", "fp16"] = "fp32"

    def probe(self, server: Server, ask: Ask) -> None:
        """Have all clients score the initial weights, and keep the highest of the weighted mean."""
        sections: Sections = {
            "parameters": Values(exchange.parameters(server.model)),
            "buffers": Values(exchange.buffers(server.model)),
        }
        size = exchange.mask_size(server.model, server.names, self.granularity)
        total = ask("score_weights", sections, {"scores": ValuesSpec(size=size, dtype="float32")}, None)
        weights, V = server.dense_weights(), self.granularity
        parts = total.mean("scores").split([w.numel() // V for w in weights.values()])
        # V equal scores a group: `masks_from_scores` adds them up again.
        scores = {
            name: part.reshape(len(w) // V, -1).repeat_interleave(V, dim=0).reshape(w.shape)
            for (name, w), part in zip(weights.items(), parts)
        }
        server.set_masks(masks_from_scores(scores, self.density, self.distribution, V))

    def score_weights(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: the saliency |g w| of each group, times the number of weights."""
        exchange.load_vectors(client.model, exchange.vectors(sections))
        client.model.train()
        batches, V = islice(client.batches("saliency"), self.batches), self.granularity
        scores = score.snip(client.model, self.prunes(client.model), batches, cross_entropy)
        groups = torch.cat([s.reshape(len(s) // V, V, -1).sum(1).flatten() for s in scores.values()])
        count = sum(s.numel() for s in scores.values())
        return {"scores": Values((groups * count).clamp(max=_LARGEST[self.score_wire]).cpu(), wire=self.score_wire)}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Refuse scores below 0."""
        scores = sections.get("scores")
        if isinstance(scores, Values) and bool((scores.tensor() < 0).any()):
            raise UpdateError("scores hold a number below 0")
        return sections
