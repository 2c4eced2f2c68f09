"""The masks of a model as a message: whole, or as the change of a mask that the receiver has.

A change names which of the old mask's active groups go and which of its inactive groups come, each by its rank among
those: two sets of indices far smaller than the mask. `base`, CRC-32C over the old mask's bits, ties it to that mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsparse.federated import exchange
from fedsparse.wire import Bitmap, Bits, Indices, Section, Values, WireError, checksum, encode

if TYPE_CHECKING:
    from fedsparse.federated.server import Server

SERVER = -1
MASK, VERSION = "sent mask", "sent mask version"


def change(old: Bits, new: Bits) -> dict[str, Section]:
    """The sections by which a holder of `old` gets `new`, a bit a group."""
    pruned, grown = old.without(new).indices(), new.without(old).indices()
    return {
        "base": Values(np.array([checksum(old.data)])),
        "pruned": Indices(old.ranks(pruned), old.count),
        "grown": Indices(old.ranks(grown, held=False), len(old) - old.count),
    }


def apply(old: Bits, sections: Mapping[str, Section]) -> Bits:
    """The mask that `sections` make of `old`; WireError where they belong to another mask."""
    base, pruned, grown = sections.get("base"), sections.get("pruned"), sections.get("grown")
    if not (isinstance(base, Values) and isinstance(pruned, Indices) and isinstance(grown, Indices)):
        raise WireError("a change of mask has the sections base, pruned and grown")
    if base.array.tolist() != [checksum(old.data)] or (pruned.size, grown.size) != (old.count, len(old) - old.count):
        raise WireError("the change of mask belongs to another mask than the receiver's")
    new = old.copy()
    new.put(old.at_ranks(pruned.indices), held=False)
    new.put(old.at_ranks(grown.indices, held=False))
    return new


def sent_mask(server: Server) -> Bits:
    """The mask that was sent last."""
    size = exchange.mask_size(server.model, server.names, server.granularity)
    return Bits(server.state[MASK].numpy(), size)


def messages(server: Server, t: int, clients: Sequence[int]) -> list[tuple[bytes, list[int]]]:
    """What brings the clients up to the server's masks, and which of them each message goes to.

    A client that has the masks before the present ones gets the change where that is shorter; a worker takes the
    messages in this order. Notes in `server.known` who has what, and in `server.state` what was sent last.
    """
    version, state = server.mask_version, server.state
    behind = [id for id in clients if server.known.get(id) != version]
    if not behind:
        return []
    new = exchange.mask_bits(server.model)
    last = int(state[VERSION]) if VERSION in state else version
    recent = [id for id in behind if last != version and server.known.get(id) == last]
    whole = encode("mask", t, SERVER, {"mask": Bitmap(new)})
    short = encode("mask", t, SERVER, change(sent_mask(server), new)) if recent else whole
    if last != version or VERSION not in state:
        state |= {MASK: torch.from_numpy(new.data), VERSION: torch.tensor(version)}
    server.known.update(dict.fromkeys(behind, version))
    if len(short) >= len(whole):
        return [(whole, behind)]
    rest = [id for id in behind if id not in recent]
    return [(short, recent), *([(whole, rest)] if rest else [])]
