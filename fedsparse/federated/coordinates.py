"""Clients whose masks differ: their weights as coordinates, one for each weight of the sparse layers, active or not.

The coordinates of a layer are the row-major indices of its dense weight, and the layers follow one another in the order
of `model.named_modules()`. On the wire such a report is the client's own mask (one bit a group) and its K values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import sparse_layers
from fedsparse.pruning import keep_largest
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Masked, Section, Values

if TYPE_CHECKING:
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


def split(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Cut a vector of coordinates [n] into the dense weight of each sparse layer."""
    layers = sparse_layers(model)
    pieces = vector.split([layer.topology.numel for layer in layers.values()])
    return {name: piece.view(layer.weight_shape) for (name, layer), piece in zip(layers.items(), pieces)}


def weights(model: nn.Module) -> Tensor:
    """All weights of the sparse layers, 0 where inactive: float32 [n] on the CPU."""
    return torch.cat([layer.dense_weight().flatten().cpu() for layer in sparse_layers(model).values()])


def of_groups(model: nn.Module, groups: Tensor) -> Tensor:
    """The coordinates [a, V] of groups [a], indices into the mask of the whole model."""
    found = []
    start = 0
    for name, (local,) in exchange.split_by_layer(model, groups).items():
        topology = sparse_layers(model)[name].topology
        width, V = topology.numel // topology.rows, topology.granularity
        first = local // width * (V * width) + local % width
        found.append(start + first[:, None] + torch.arange(V) * width)
        start += topology.numel
    return torch.cat(found)


def of_mask(model: nn.Module, bits: Tensor) -> Tensor:
    """The mask of the whole model, one bit a group, as bool [n] over coordinates."""
    mask = torch.zeros(sum(layer.topology.numel for layer in sparse_layers(model).values()), dtype=torch.bool)
    mask[of_groups(model, bits.nonzero().flatten()).flatten()] = True
    return mask


def digest(server: Server, sections: Mapping[str, Section]) -> dict[str, Section]:
    """Turn `parameters` under the client's own `mask` into `weights` (Masked, by coordinate) and `rest`, which add.

    Raises UpdateError where a layer does not have exactly the server's number of active weights. Other sections stay.
    """
    mask, parameters = sections["mask"], sections["parameters"]
    if not isinstance(mask, Bitmap) or not isinstance(parameters, Values):
        raise UpdateError("mask and parameters must be a Bitmap and Values")
    bits = torch.as_tensor(mask.mask)
    for name, (groups,) in exchange.split_by_layer(server.model, bits.nonzero().flatten()).items():
        topology = server.layers[name].topology
        if len(groups) * topology.granularity != topology.nnz:
            raise UpdateError(f"mask has {len(groups) * topology.granularity} weights in {name}, not {topology.nnz}")
    values, rest = exchange.split_parameters(server.model, parameters.tensor())
    by_coordinate = Masked(of_mask(server.model, bits), torch.cat([values[name] for name in server.layers]))
    others = {name: section for name, section in sections.items() if name not in ("mask", "parameters")}
    return {"weights": by_coordinate, "rest": Values(rest), **others}


def check_norm(server: Server, sections: Mapping[str, Section], bound: float) -> None:
    """Refuse (UpdateError) a digested report whose model is farther than `bound` from the server's, in the 2-norm.

    Where masks differ, weights are compared that the client holds, one that the server lacks counting as 0 there.
    """
    before, square = exchange.parameters(server.model), 0.0
    if isinstance(parameters := sections.get("parameters"), Values):
        square = float((parameters.tensor() - before).double().square().sum())
    held, rest = sections.get("weights"), sections.get("rest")
    if isinstance(held, Masked) and isinstance(rest, Values):
        ours = weights(server.model)[torch.as_tensor(held.mask)]
        _, dense = exchange.split_parameters(server.model, before)
        square = sum(float((a - b).double().square().sum()) for a, b in ((held.tensor(), ours), (rest.tensor(), dense)))
    if not square <= bound**2:
        raise UpdateError(f"its model is {square**0.5:g} away from the server's, the bound is {bound:g}")


@dataclass(frozen=True)
class Merged:
    """A mean over clients whose masks differ.

    weights: float32 [n], 0 where nobody has the coordinate; held: bool [n], where somebody has; rest, buffers: vectors
    of the dense parameters and norm statistics.
    """

    weights: Tensor
    held: Tensor
    rest: Tensor
    buffers: Tensor


def merge(server: Server, total: Total, idle: int = 0) -> Merged:
    """Per coordinate sum n_k m_k w_k / sum n_k m_k over digested reports; `rest` and `buffers` over all of them.

    idle: samples of clients that are counted besides, with the server's present mask and weights.
    """
    merged, share = total.masked("weights")
    held = share > 0
    if idle:
        mine = of_mask(server.model, exchange.mask(server.model))
        theirs, old = share[mine].double(), idle / total.accepted
        summed = theirs * merged[mine] + old * weights(server.model)[mine]
        merged[mine] = (summed / (theirs + old)).float()
        held |= mine
    _, rest = exchange.split_parameters(server.model, exchange.parameters(server.model))
    buffers = exchange.buffers(server.model)
    return Merged(
        merged, held, mean_with_idle(total, "rest", rest, idle), mean_with_idle(total, "buffers", buffers, idle)
    )


def mean_with_idle(total: Total, name: str, now: Tensor, idle: int) -> Tensor:
    """The mean of the reports' section and of the server's present numbers `now`, which weigh `idle` samples."""
    old = idle / total.accepted
    return ((total.mean(name).double() + old * now) / (1 + old)).float()


def load_largest(server: Server, merged: Merged) -> None:
    """Prune the union of the masks by magnitude to each layer's number of active weights, and load what is left."""
    topologies, values = {}, {}
    merged_weights, held = split(server.model, merged.weights), split(server.model, merged.held)
    for name, layer in server.layers.items():
        union = Topology.from_mask(held[name], layer.granularity)
        count = layer.topology.nnz // layer.granularity
        topologies[name] = keep_largest(union, union.pack(merged_weights[name]), count)
        values[name] = topologies[name].pack(merged_weights[name])
    server.change_masks(topologies)
    server.load(exchange.join_parameters(server.model, values, merged.rest), merged.buffers)
