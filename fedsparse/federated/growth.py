"""The inactive weights of largest gradient: how a client finds them, and what the server refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.method import Method
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import Growth, collect_growth, sparse_layers

if TYPE_CHECKING:
    from fedsparse.federated.client import Client

Batch = tuple[Tensor, Tensor]


def find_growth(
    client: Client,
    method: Method,
    counts: Mapping[str, int],
    batches: Sequence[Batch],
    directions: Mapping[str, Tensor] | None = None,
) -> dict[str, Growth]:
    """The `counts[name]` inactive groups a layer of largest |gradient| of the method's loss on all `batches` at once.

    directions: as `nn.collect_growth` takes them. One forward and backward pass in the model's present mode that leaves
    no trace: no gradients, and the norm statistics as they were.
    """
    statistics = exchange.buffers(client.model)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    client.optimizer.zero_grad(set_to_none=True)
    with collect_growth(sparse_layers(client.model), counts, directions) as found:
        method.loss(client, client.model(x), y).backward()
    client.optimizer.zero_grad(set_to_none=True)
    exchange.load_buffers(client.model, statistics)
    return found


def growth_batches(client: Client, count: int) -> list[Batch]:
    """The first `count` minibatches of a pass over the client's data; all of them where it is 0."""
    return list(islice(client.batches("growth"), count or None))


def join_groups(model: nn.Module, groups: Mapping[str, Tensor]) -> Tensor:
    """Groups of some layers as sorted indices into the mask of the whole model: int64 on the CPU."""
    starts = exchange.offsets(model)
    found = [groups[name].cpu() + start for name, start in starts.items() if name in groups]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def check_growth(model: nn.Module, what: str, groups: Tensor, counts: Mapping[str, int], mask: Tensor) -> None:
    """Refuse (UpdateError) groups of the whole model that are not `counts[name]` a layer, all inactive in `mask`."""
    for name, (local,) in exchange.split_by_layer(model, groups).items():
        if len(local) != counts.get(name, 0):
            raise UpdateError(f"{what} has {len(local)} weights in {name}, not {counts.get(name, 0)}")
    if mask[groups].any():
        raise UpdateError(f"{what} names a weight that is active already")
