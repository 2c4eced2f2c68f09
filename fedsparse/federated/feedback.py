"""Error feedback: what rounding takes from a client's report, the client adds to its next one.

Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes SignSGD",
ICML 2019 (EF-SGD): with w what a client means to say, e its residual (0 at first) and Q the values' format on the wire,

    m = w + e,  it sends Q(m),  e <- m - Q(m).

So the messages of any number of rounds sum to what was meant in them, up to the last residual. Parameters alone have
one, on what was active in the client when it reported. When it reports next, under another mask, weights active in both
have theirs (`Topology.index_map`), those that left lose it, and new ones start at 0.

A client keeps `keeps`, an encoded message of one float32 for each parameter and its masks; whoever runs the clients
holds these bytes for each that ever took part, and hands them to the process that trains the client next. A device
would keep them itself, so that they count as no traffic. A report that is not summed (rejected, late, lost) changes
nothing: the client repeats with the residual that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsparse.federated import exchange
from fedsparse.nn import sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.topology import Move
from fedsparse.wire import Bitmap, Bits, Carrier, Section, Values, decode, encode

if TYPE_CHECKING:
    from fedsparse.federated.client import Client


def check_feedback(error_feedback: bool, wire: Carrier) -> None:
    """Refuse (ValueError) feedback of errors that nothing makes."""
    if error_feedback and wire == "fp32":
        raise ValueError("wire.error_feedback is true, but wire.values 'fp32' loses nothing; choose fp16, bf16 or int8")


def parameters(client: Client, seed: int) -> Values:
    """The section `parameters` of the client's report, its residual added; sets `client.keeps` to the next one.

    seed: of int8's rounding. ValueError on a value that is not finite, with int8.
    """
    meant = exchange.parameters(client.tensors)
    if client.kept:
        meant += residual(client, decode(client.kept).sections)
    sent = exchange.narrow(meant, [p.numel() for p in client.tensors.parameters], client.wire, seed)
    rest, mask = Values(meant - _said(sent)), Bitmap(exchange.mask_bits(client.model))
    client.keeps = encode("residual", client.round, client.id, {"residual": rest, "mask": mask})
    return sent


def residual(client: Client, kept: Mapping[str, Section]) -> Tensor:
    """What the client kept, float32, an entry for each of its parameters under its present masks."""
    values, mask = kept["residual"], kept["mask"]
    assert isinstance(values, Values)
    assert isinstance(mask, Bitmap)
    return moved(client, values.tensor(), mask.bits)


def moved(client: Client, vector: Tensor, bits: Bits) -> Tensor:
    """A vector over the parameters that are active under the masks `bits`, as one over those that are now."""
    model, now = client.model, exchange.mask_bits(client.model)
    if bits.size == now.size and bits.data.tobytes() == now.data.tobytes():
        return vector
    layers, starts = sparse_layers(model), exchange.offsets(model)
    owners = {id(layer.values): name for name, layer in layers.items()}
    pieces, at = [], 0
    for parameter in client.tensors.parameters:
        name = owners.get(id(parameter))
        if name is None:
            pieces.append(vector[at : at + parameter.numel()])
            at += parameter.numel()
            continue
        new, granularity = layers[name].topology.to("cpu"), layers[name].granularity
        end = starts[name] + new.numel // granularity
        old = from_groups(torch.from_numpy(bits.between(starts[name], end)), new.shape, granularity)
        pieces.append(Move(*old.index_map(new), new.nnz).apply(vector[at : at + old.nnz]))
        at += old.nnz
    return torch.cat(pieces)


def _said(sent: Values) -> Tensor:
    """What the receiver of the section will read."""
    section = decode(encode("report", 0, 0, {"parameters": sent})).sections["parameters"]
    assert isinstance(section, Values)
    return section.tensor()
