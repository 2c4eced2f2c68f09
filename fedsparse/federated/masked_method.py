"""What methods that start from one given mask share: how that mask is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.method import Ask, Sections
from fedsparse.federated.opening import ask_one
from fedsparse.federated.pruning_method import PruningMethod
from fedsparse.federated.seeds import derive, torch_generator
from fedsparse.pruning import Distribution, masks_from_scores, score
from fedsparse.wire import Bitmap, BitmapSpec, Bits, Section

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server

Initial = Literal["random", "magnitude", "snip", "grasp", "synflow"]


@dataclass(frozen=True)
class MaskedMethod(PruningMethod):
    """A method whose first mask has a given density over the prunable weights.

    density: d in (0, 1]; 1 is dense training. distribution: layer densities, `uniform`, `er`, `erk`, or `global` (by
    score over all layers). initial: the score; `snip` and `grasp` see `initial_batches` batches of the client with the
    most samples. The fields of PruningMethod say which layers have masks.
    """

    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    distribution: Distribution = "erk"
    initial: Initial = "random"
    initial_batches: Annotated[int, Field(ge=1)] = 4

    def prunes(self, model: nn.Module) -> list[str]:
        """The prunable layers; none where the density is 1."""
        return super().prunes(model) if self.density < 1 else []

    def start(self, server: Server) -> None:
        """Choose a mask that needs no data."""
        if not server.names or self.initial in ("snip", "grasp"):
            return
        if self.initial == "synflow":
            names, shape = server.names, server.input_shape
            server.set_masks(
                score.synflow_masks(server.model, names, shape, self.density, self.distribution, self.granularity)
            )
            return
        weights = server.dense_weights()
        generator = torch_generator(server.seed, "initial mask")
        scores = score.random(weights, generator) if self.initial == "random" else score.magnitude(weights)
        server.set_masks(masks_from_scores(scores, self.density, self.distribution, self.granularity))

    def probe(self, server: Server, ask: Ask) -> None:
        """Have the client with the most samples (the next where it is refused) choose a mask that needs data."""
        if not server.names or self.initial not in ("snip", "grasp"):
            return
        sections = exchange.sections(server.model, server.wire, derive(server.seed, "wire/score_mask"))
        size = exchange.mask_size(server.model, server.names, self.granularity)
        total = ask_one(ask, server, "score_mask", sections, {"mask": BitmapSpec(size=size)})
        server.set_mask_bits(Bits.of_mask((total.mean("mask") > 0.5).numpy()))

    def score_mask(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: score the dense weights on its own data and send the mask of the highest."""
        exchange.load_vectors(client.model, exchange.vectors(sections))
        names = self.prunes(client.model)
        scorer = score.snip if self.initial == "snip" else score.grasp
        client.model.train()
        scores = scorer(client.model, names, list(_some_batches(client, self.initial_batches)), cross_entropy)
        masks = masks_from_scores(scores, self.density, self.distribution, self.granularity)
        return {"mask": Bitmap(torch.cat([_group_bits(masks[name], self.granularity) for name in names]))}


def _some_batches(client: Client, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _, batch in zip(range(count), client.batches("initial mask")):
        yield batch


def _group_bits(mask: Tensor, granularity: int) -> Tensor:
    return mask.reshape(mask.shape[0], -1)[::granularity].flatten()
