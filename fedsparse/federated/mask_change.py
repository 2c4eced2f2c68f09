"""The masks of a model as a message: whole, or as the change of a mask that the receiver has.

A change names which of the old mask's active groups go and which of its inactive groups come, each by its rank among
those: two sets of indices far smaller than the mask. `base`, CRC-32C over the old mask's bits, ties it to that mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsparse.federated import exchange
from fedsparse.wire import Bitmap, Indices, Section, Values, WireError, checksum, encode

if TYPE_CHECKING:
    from fedsparse.federated.server import Server

SERVER = -1
MASK, VERSION = "sent mask", "sent mask version"


def change(old: Tensor, new: Tensor) -> dict[str, Section]:
    """The sections by which a holder of `old` gets `new`: bool [groups] both."""
    pruned = (~new[old]).nonzero().flatten()
    grown = new[~old].nonzero().flatten()
    active = int(torch.count_nonzero(old))
    return {
        "base": Values(np.array([checksum(old.numpy())])),
        "pruned": Indices(pruned, active),
        "grown": Indices(grown, len(old) - active),
    }


def apply(old: Tensor, sections: Mapping[str, Section]) -> Tensor:
    """The mask bool [groups] that `sections` make of `old`; WireError where they belong to another mask."""
    base, pruned, grown = sections.get("base"), sections.get("pruned"), sections.get("grown")
    if not (isinstance(base, Values) and isinstance(pruned, Indices) and isinstance(grown, Indices)):
        raise WireError("a change of mask has the sections base, pruned and grown")
    active = int(torch.count_nonzero(old))
    if base.array.tolist() != [checksum(old.numpy())] or (pruned.size, grown.size) != (active, len(old) - active):
        raise WireError("the change of mask belongs to another mask than the receiver's")
    new = old.clone()
    new[old.nonzero().flatten()[torch.as_tensor(pruned.indices)]] = False
    new[(~old).nonzero().flatten()[torch.as_tensor(grown.indices)]] = True
    return new


def messages(server: Server, t: int, clients: Sequence[int]) -> list[tuple[bytes, list[int]]]:
    """What brings the clients up to the server's masks, and which of them each message goes to.

    A client that has the masks before the present ones gets the change where that is shorter; a worker takes the
    messages in this order. Notes in `server.known` who has what, and in `server.state` what was sent last.
    """
    version, state = server.mask_version, server.state
    behind = [id for id in clients if server.known.get(id) != version]
    if not behind:
        return []
    new = exchange.mask(server.model)
    last = int(state[VERSION]) if VERSION in state else version
    recent = [id for id in behind if last != version and server.known.get(id) == last]
    whole = encode("mask", t, SERVER, {"mask": Bitmap(new)})
    short = encode("mask", t, SERVER, change(state[MASK], new)) if recent else whole
    state |= {MASK: new, VERSION: torch.tensor(version)} if last != version or VERSION not in state else {}
    server.known.update(dict.fromkeys(behind, version))
    if len(short) >= len(whole):
        return [(whole, behind)]
    rest = [id for id in behind if id not in recent]
    return [(short, recent), *([(whole, rest)] if rest else [])]
