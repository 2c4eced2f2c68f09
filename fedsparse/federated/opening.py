"""What happens before round 0 at one client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedsparse.federated import exchange
from fedsparse.federated.errors import RunError
from fedsparse.federated.method import Ask, Sections
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import sparse_layers
from fedsparse.wire import Bitmap, Section, Spec, Values

if TYPE_CHECKING:
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


def ask_one(ask: Ask, server: Server, task: str, sections: Sections, expect: Mapping[str, Spec]) -> Total:
    """The answer of the client with the most samples, or of the next where its own is refused; RunError if all are."""
    failure = RunError("there is no client")
    for id in sorted(range(len(server.samples)), key=lambda id: -server.samples[id]):
        try:
            return ask(task, sections, expect, [id])
        except RunError as error:
            failure = error
    raise failure


def check_model(model: nn.Module, mask: Bitmap, parameters: Section) -> None:
    """Refuse (UpdateError) an answer whose mask and parameters are no model with a weight in each layer."""
    layers = sparse_layers(model)
    active = sum(layer.topology.nnz for layer in layers.values())
    V = next(iter(layers.values())).granularity
    expected = sum(p.numel() for p in model.parameters()) - active + V * mask.bits.count
    if not isinstance(parameters, Values) or len(parameters.array) != expected:
        raise UpdateError(f"its mask makes a model of {expected} parameters, and it has another number of them")
    for name, (groups,) in exchange.split_by_layer(model, torch.from_numpy(mask.bits.indices())).items():
        if len(groups) == 0:
            raise UpdateError(f"its mask leaves {name} without weights")
