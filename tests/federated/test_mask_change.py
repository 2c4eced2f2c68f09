"""A mask travels as its change where the receiver has the one before and that is shorter."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_loop import toy
from torch import Tensor, nn

from fedsparse.federated import Loop, Server, exchange, mask_change
from fedsparse.federated.workers import Tag
from fedsparse.methods import FedAvg
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, Bits, Indices, WireError, decode, encode
from fedsparse.wire.bits import CHUNK


def random_mask(size: int, density: float, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(size) < density)


def random_bits(size: int, density: float, seed: int) -> Bits:
    return Bits.of_mask(random_mask(size, density, seed).numpy())


def same(one: Bits, other: Bits) -> bool:
    return one.size == other.size and np.array_equal(one.data, other.data)


def change_of(data: bytes) -> dict[str, object]:
    return {name: getattr(section, "indices", None) for name, section in decode(data).sections.items()}


def test_by_hand() -> None:
    """Active 1, 3, 4 of six: 3 goes, the second of them; 5 comes, the third of the inactive 0, 2, 5."""
    old, new = Bits.zeros(6), Bits.zeros(6)
    old.put(np.array([1, 3, 4]))
    new.put(np.array([1, 4, 5]))
    sections = mask_change.change(old, new)
    pruned, grown = sections["pruned"], sections["grown"]
    assert isinstance(pruned, Indices)
    assert isinstance(grown, Indices)
    assert (pruned.indices.tolist(), pruned.size) == ([1], 3)
    assert (grown.indices.tolist(), grown.size) == ([2], 3)
    assert same(mask_change.apply(old, decode(encode("mask", 0, -1, sections)).sections), new)


@given(st.integers(0, 60), st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_mask_from_any_other(size: int, first: int, second: int) -> None:
    old, new = random_bits(size, 0.3, first), random_bits(size, 0.6, second)
    assert same(mask_change.apply(old, mask_change.change(old, new)), new)


def test_a_mask_of_many_chunks() -> None:
    old, new = random_bits(3 * CHUNK + 5, 0.3, 1), random_bits(3 * CHUNK + 5, 0.3, 2)
    assert same(mask_change.apply(old, mask_change.change(old, new)), new)


def test_a_change_of_another_mask_is_refused() -> None:
    old, new, other = (random_bits(50, 0.3, seed) for seed in range(3))
    with pytest.raises(WireError, match="belongs to another mask"):
        mask_change.apply(other, mask_change.change(old, new))
    with pytest.raises(WireError, match="has the sections base, pruned and grown"):
        mask_change.apply(old, {"base": Bitmap(old)})


def server() -> Server:
    made = Server(nn.Sequential(nn.Linear(2000, 10, bias=False)), 0, ["0"], 1, (2000,), [1] * 4)
    made.set_masks({"0": random_mask(20_000, 0.1, 0).view(10, 2000)})
    return made


def move_a_weight(made: Server) -> None:
    mask = made.layers["0"].topology.mask().flatten()
    active, inactive = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    mask[active[7]], mask[inactive[9]] = False, True
    made.change_masks({"0": Topology.from_mask(mask.view(10, 2000))})


def test_who_gets_what() -> None:
    """Version 1 whole to 0 and 1; then the change to 0, which has it, and the whole mask to 2, which has nothing; two
    versions later 1, which has version 1 only, gets the whole mask."""
    made = server()
    assert [ids for _, ids in mask_change.messages(made, 0, [0, 1])] == [[0, 1]]
    assert mask_change.messages(made, 1, [0, 1]) == []
    before = exchange.mask_bits(made.model)
    move_a_weight(made)
    (change, first), (whole, second) = mask_change.messages(made, 2, [0, 2])
    assert (first, second) == ([0], [2])
    assert len(change) < 100 < 1000 < len(whole)
    now = exchange.mask_bits(made.model)
    assert same(mask_change.apply(before, decode(change).sections), now)
    assert same(decode(whole).sections["mask"].bits, now)
    (again, late), *none = mask_change.messages(made, 3, [0, 1, 2])
    assert (late, none, decode(again).sections.keys()) == ([1], [], {"mask"})
    move_a_weight(made)
    assert [ids for _, ids in mask_change.messages(made, 4, [0, 1, 2, 3])] == [[0, 1, 2], [3]]


def test_a_change_that_is_longer_than_the_mask_is_not_sent() -> None:
    made = server()
    mask_change.messages(made, 0, [0])
    made.change_masks({"0": Topology.from_mask(random_mask(20_000, 0.1, 1).view(10, 2000))})
    (message, ids), *none = mask_change.messages(made, 1, [0])
    assert (ids, none, decode(message).sections.keys()) == ([0], [], {"mask"})


def test_workers_end_with_the_servers_mask() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 3)]
    experiment = toy(FedAvg(density=0.5), rounds=2, model=nn.Sequential(*layers))
    loop = Loop(experiment)
    sent = []
    deliver = loop.workers.send
    loop.workers.send = lambda kind, data: (sent.append((kind, data)), deliver(kind, data))[1]
    loop.open()
    loop.round(0)
    mask = loop.server.layers["3"].topology.mask()
    mask[0] = ~mask[0]
    loop.server.change_masks({"3": Topology.from_mask(mask)})
    loop.round(1)
    masks = [decode(data).sections for kind, data in sent if kind is Tag.MASK]
    assert [list(sections) for sections in masks] == [["mask"], ["base", "pruned", "grown"]]
    assert torch.equal(exchange.mask(loop.workers.worker.model), exchange.mask(loop.server.model))
