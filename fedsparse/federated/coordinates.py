"""Clients whose masks differ: their weights as coordinates, one for each weight of the sparse layers, active or not.

The coordinates of a layer are the row-major indices of its dense weight, and the layers follow one another in the order
of `model.named_modules()`. On the wire such a report is the client's own mask (one bit a group) and its K values. In
memory only coordinates exist that somebody has: nothing is as large as the dense weights, but a bit for each.
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
from fedsparse.wire import Bitmap, Bits, Masked, Section, Values

if TYPE_CHECKING:
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


def size(model: nn.Module) -> int:
    """The number of coordinates."""
    return sum(layer.topology.numel for layer in sparse_layers(model).values())


def split(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Cut a vector with an entry for each coordinate into a view of each layer's dense shape."""
    layers = sparse_layers(model)
    pieces = vector.split([layer.topology.numel for layer in layers.values()])
    return {name: piece.view(layer.weight_shape) for (name, layer), piece in zip(layers.items(), pieces)}


def by_layer(model: nn.Module, places: Tensor) -> dict[str, tuple[slice, Tensor]]:
    """Of sorted coordinates: which of them are a layer's, and these as indices into its dense weight, by name."""
    found, start = {}, 0
    for name, layer in sparse_layers(model).items():
        end = start + layer.topology.numel
        low, high = (int(at) for at in torch.searchsorted(places, torch.tensor([start, end])))
        found[name] = slice(low, high), places[low:high] - start
        start = end
    return found


def active(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The coordinates of the active weights, sorted int64 [K], and the weights, float32 [K], on the CPU."""
    places, values, start = [], [], 0
    for layer in sparse_layers(model).values():
        places.append(layer.topology.flat().cpu() + start)
        values.append(layer.values.detach().cpu())
        start += layer.topology.numel
    return torch.cat(places), torch.cat(values)


def look_up(places: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """For each of `wanted` the value [u] whose place (sorted int64 [u]) it is, 0 where it is none."""
    if not len(places):
        return values.new_zeros(len(wanted))
    at = torch.searchsorted(places, wanted).clamp_(max=len(places) - 1)
    return torch.where(places[at] == wanted, values[at], 0)


def movement(before: tuple[Tensor, Tensor], model: nn.Module) -> tuple[Tensor, Tensor]:
    """What became of the weights that were `active` before: the coordinates active then or now, and the differences."""
    now = active(model)
    places = torch.unique(torch.cat([before[0], now[0]]))
    return places, look_up(*now, places) - look_up(*before, places)


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


def of_bits(model: nn.Module, bits: Bits) -> Bits:
    """The mask of the whole model, a bit a group, as a bit a coordinate."""
    mask = Bits.zeros(size(model))
    mask.put(of_groups(model, torch.from_numpy(bits.indices())).flatten().numpy())
    return mask


def digest(server: Server, sections: Mapping[str, Section]) -> dict[str, Section]:
    """Turn `parameters` under the client's own `mask` into `weights` (Masked, by coordinate) and `rest`, which add.

    Raises UpdateError where a layer does not have exactly the server's number of active weights. Other sections stay.
    """
    mask, parameters = sections["mask"], sections["parameters"]
    if not isinstance(mask, Bitmap) or not isinstance(parameters, Values):
        raise UpdateError("mask and parameters must be a Bitmap and Values")
    for name, (groups,) in exchange.split_by_layer(server.model, torch.from_numpy(mask.bits.indices())).items():
        topology = server.layers[name].topology
        if len(groups) * topology.granularity != topology.nnz:
            raise UpdateError(f"mask has {len(groups) * topology.granularity} weights in {name}, not {topology.nnz}")
    values, rest = exchange.split_parameters(server.model, parameters.tensor())
    by_coordinate = Masked(of_bits(server.model, mask.bits), torch.cat([values[name] for name in server.layers]))
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
        ours = look_up(*active(server.model), torch.from_numpy(held.bits.indices()))
        _, dense = exchange.split_parameters(server.model, before)
        square = sum(float((a - b).double().square().sum()) for a, b in ((held.tensor(), ours), (rest.tensor(), dense)))
    if not square <= bound**2:
        raise UpdateError(f"its model is {square**0.5:g} away from the server's, the bound is {bound:g}")


@dataclass(frozen=True)
class Merged:
    """A mean over clients whose masks differ.

    places: the coordinates that somebody has, sorted int64 [u]; weights: float32 [u]; rest, buffers: vectors of the
    dense parameters and norm statistics.
    """

    places: Tensor
    weights: Tensor
    rest: Tensor
    buffers: Tensor


def merge(server: Server, total: Total, idle: int = 0) -> Merged:
    """Per coordinate sum n_k m_k w_k / sum n_k m_k over digested reports; `rest` and `buffers` over all of them.

    idle: samples of clients that are counted besides, with the server's present mask and weights.
    """
    places, merged, share = total.masked("weights")
    if idle:
        mine, weights = active(server.model)
        union = torch.unique(torch.cat([places, mine]))
        merged, share = (look_up(places, numbers, union) for numbers in (merged, share))
        own, old = torch.searchsorted(union, mine), idle / total.accepted
        theirs = share[own].double()
        merged[own] = ((theirs * merged[own] + old * weights) / (theirs + old)).float()
        places = union
    _, rest = exchange.split_parameters(server.model, exchange.parameters(server.model))
    buffers = exchange.buffers(server.model)
    return Merged(
        places, merged, mean_with_idle(total, "rest", rest, idle), mean_with_idle(total, "buffers", buffers, idle)
    )


def mean_with_idle(total: Total, name: str, now: Tensor, idle: int) -> Tensor:
    """The mean of the reports' section and of the server's present numbers `now`, which weigh `idle` samples."""
    old = idle / total.accepted
    return ((total.mean(name).double() + old * now) / (1 + old)).float()


def load_largest(server: Server, merged: Merged) -> None:
    """Prune the union of the masks by magnitude to each layer's number of active weights, and load what is left."""
    topologies, values = {}, {}
    for name, (which, local) in by_layer(server.model, merged.places).items():
        layer, weights = server.layers[name], merged.weights[which]
        union = Topology.from_flat(local, layer.weight_shape, layer.granularity)
        topologies[name] = keep_largest(union, weights, layer.topology.nnz // layer.granularity)
        values[name] = look_up(local, weights, topologies[name].flat())
    server.change_masks(topologies)
    server.load(exchange.join_parameters(server.model, values, merged.rest), merged.buffers)
