"""The inactive weights of largest gradient: how a client finds them, and what the server refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice, starmap
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.method import Method
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import (
    Growth,
    SparseLayer,
    collect_growth,
    growth_search,
    sparse_layers,
    visit_gradients,
)
from fedsparse.topology import Topology
from fedsparse.wire import Bits

if TYPE_CHECKING:
    from fedsparse.federated.client import Client

Batch = tuple[Tensor, Tensor]
Batches = Callable[[], Iterator[Batch]]
"""Makes a new pass over the same minibatches at each call."""
SUMMED = 1 << 20
"""Weights whose gradients are summed over minibatches at a time, 4 MiB of them."""


def find_growth(
    client: Client,
    method: Method,
    counts: Mapping[str, int],
    batches: Batches,
    directions: Mapping[str, Tensor] | None = None,
) -> dict[str, Growth]:
    """The `counts[name]` inactive groups a layer of largest |gradient| of the method's loss, its mean over `batches`.

    directions: as `nn.collect_growth` takes them. Passes in the model's present mode that leave no trace: no gradients,
    and the norm statistics as they were. Of one minibatch no dense gradient is held. Of several, one minibatch at a
    time, those of some rows of some layers are summed, at most `SUMMED` weights, and each such portion takes a pass
    over the data; batch norm uses each minibatch's own statistics, as in training. What the
    client takes in pieces counts as several minibatches.
    """

    def pieces() -> Iterator[Batch]:
        return chain.from_iterable(starmap(client.pieces, batches()))

    statistics = exchange.buffers(client.tensors)
    client.drop_gradients()
    (x, y), *others = islice(pieces(), 2)
    if others:
        found = _find_over_batches(client, method, counts, pieces, directions)
    else:
        with collect_growth(sparse_layers(client.model), counts, directions) as found:
            method.loss(client, client.model(x), y).backward()
    client.drop_gradients()
    exchange.load_buffers(client.tensors, statistics)
    return found


def _find_over_batches(
    client: Client,
    method: Method,
    counts: Mapping[str, int],
    batches: Batches,
    directions: Mapping[str, Tensor] | None,
) -> dict[str, Growth]:
    layers = {name: layer for name, layer in sparse_layers(client.model).items() if name in counts}
    signs: Mapping[str, Tensor | None] = dict.fromkeys(layers) if directions is None else directions
    searches = {n: growth_search(layer, counts[n], signs[n]) for n, layer in layers.items()}
    for rows in portions({name: layer.topology for name, layer in layers.items()}):
        for name, gradient in _mean_gradients(client, method, layers, rows, batches).items():
            searches[name].look_at(rows[name].start, gradient)
    return {name: Growth(*search.found()) for name, search in searches.items()}


def _mean_gradients(
    client: Client, method: Method, layers: Mapping[str, SparseLayer], rows: Mapping[str, slice], batches: Batches
) -> dict[str, Tensor]:
    """Rows of the dense gradient of layers of the mean loss over all targets of the batches."""
    sums: dict[str, Tensor] = {}
    targets = 0

    def add(name: str, gradient: Tensor) -> None:
        sums[name] = sums[name].add_(gradient) if name in sums else gradient

    with visit_gradients({name: layers[name] for name in rows}, add, rows):
        for x, y in batches():
            (method.loss(client, client.model(x), y) * y.numel()).backward()
            targets += y.numel()
    return {name: gradient.div_(targets) for name, gradient in sums.items()}


def portions(topologies: Mapping[str, Topology]) -> list[dict[str, slice]]:
    """Consecutive rows of layers in portions of at most `SUMMED` weights, or one group of rows where that is more."""
    lists: list[dict[str, slice]] = []
    held = SUMMED
    for name, topology in topologies.items():
        V, start = topology.granularity, 0
        width = topology.numel // topology.rows
        while start < topology.rows:
            if held + V * width > SUMMED:
                lists.append({})
                held = 0
            count = min(topology.rows - start, max(V, (SUMMED - held) // width // V * V))
            lists[-1][name] = slice(start, start + count)
            held, start = held + count * width, start + count
    return lists


def growth_batches(client: Client, count: int) -> Batches:
    """The first `count` minibatches of a pass over the client's data; all of them where it is 0."""
    return lambda: islice(client.batches("growth"), count or None)


def join_groups(model: nn.Module, groups: Mapping[str, Tensor]) -> Tensor:
    """Groups of some layers as sorted indices into the mask of the whole model: int64 on the CPU."""
    starts = exchange.offsets(model)
    found = [groups[name].cpu() + start for name, start in starts.items() if name in groups]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def check_growth(model: nn.Module, what: str, groups: Tensor, counts: Mapping[str, int], mask: Bits) -> None:
    """Refuse (UpdateError) groups of the whole model that are not `counts[name]` a layer, all inactive in `mask`."""
    for name, (local,) in exchange.split_by_layer(model, groups).items():
        if len(local) != counts.get(name, 0):
            raise UpdateError(f"{what} has {len(local)} weights in {name}, not {counts.get(name, 0)}")
    if mask.holds(groups.numpy()).any():
        raise UpdateError(f"{what} names a weight that is active already")
