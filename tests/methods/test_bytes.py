"""Bytes of every round and method, of encoded messages, against the table of what each exchange must cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_runs import CLIENTS, toy_loop

from fedsparse.federated import Loop, Method, exchange
from fedsparse.methods import SSFL, FedAvg, FedDST, FedMef, FedRTS, FedSGC, FedTiny, PruneFL
from fedsparse.nn import sparse_layers
from fedsparse.wire import encode

FRAME = 400
"""The most bytes of a message that are no payload: header, names, lengths, checksums."""
EVERY = {"interval": 2, "last": 5, "density": 0.3}


def groups(loop: Loop) -> int:
    return exchange.group_count(loop.server.model)


def pairs(width: int) -> Callable[[Loop, Method, int], tuple[float, float]]:
    """(least, most) bytes of a_l indices of 1/8 to 3 bytes each, and of gradients of `width` bytes."""

    def bounds(loop: Loop, method: Method, t: int) -> tuple[float, float]:
        count = sum(method.counts(loop.server.model, t).values())  # type: ignore[attr-defined]
        assert count > 0
        return count * (width + 1 / 8), count * (width + 3)

    return bounds


def masks(loop: Loop, method: Method, t: int) -> tuple[float, float]:
    """A bit a group, or fewer where the codec does better."""
    return 1, groups(loop) / 8


def masks_and_gradients(loop: Loop, method: Method, t: int) -> tuple[float, float]:
    """FedSGC's reports hold besides the mask k_l gradients, index and bfloat16, for the map of inactive weights."""
    count = sum(method.counts(loop.server.model, t, 6).values())  # type: ignore[attr-defined]
    return count * 2, groups(loop) / 8 + count * 5


def squares(loop: Loop, method: Method, t: int) -> tuple[float, float]:
    """A float32 for every prunable weight, and one for the rest."""
    return 4 * groups(loop), 4 * groups(loop) + 4


CASES = {
    "dense": (FedAvg(), None),
    "fixed mask": (FedAvg(density=0.3), None),
    "ssfl": (SSFL(density=0.3), None),
    "prunefl": (PruneFL(interval=2, max_density=0.3, initial_limit=0, weight_seconds=1e-6), squares),
    "feddst": (FedDST(rate=0.3, **EVERY), masks),
    "fedtiny": (FedTiny(pool=1, blocks=1, **EVERY), pairs(4)),
    "fedmef": (FedMef(**EVERY), pairs(4)),
    "fedsgc": (FedSGC(rate=0.3, **EVERY), masks_and_gradients),
    "fedrts": (FedRTS(**EVERY), pairs(0)),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_a_round_are_those_of_the_table(case: str) -> None:
    """Down: 4 bytes a value, the mask to all when it is new, FedSGC's map of 2 bits a weight in adjustment rounds.
    Up: 4 bytes a value, and in adjustment rounds what the table adds; between them no index and no mask."""
    method, adds = CASES[case]
    loop = toy_loop(method)
    server, told = loop.server, 0
    adjusting = {t for t in range(6) if adds is not None and t in (2, 4)}
    for t in range(6):
        values = 4 * (server.parameter_count + server.buffer_count)
        down, up, new_mask = values, values, server.mask_version != told
        told = server.mask_version
        low, high = (0.0, 0.0) if t not in adjusting or adds is None else adds(loop, method, t)
        direction = groups(loop) / 4 if case == "fedsgc" and t in adjusting else 0.0
        opening = loop.down if t == 0 else 0
        record = loop.round(t)
        assert record["rejected"] == []
        sent = (record["bytes_down"] - opening) / CLIENTS
        least, most = down + (1 if new_mask else 0), down + (groups(loop) / 8 + FRAME if new_mask else 0) + direction
        assert least < sent <= most + FRAME, (t, "down")
        if t > 0:
            assert up + low < record["bytes_up"] / CLIENTS <= up + high + FRAME, (t, "up")
    versions = {"dense": 0, "fixed mask": 1, "ssfl": 1, "prunefl": 2}
    assert server.mask_version == versions.get(case, 3), "the mask changed as often as the rounds adjust it"


def test_fedsgc_and_its_map_cost_two_bits_a_weight() -> None:
    method, _ = CASES["fedsgc"]
    loop = toy_loop(method)
    server = loop.server
    server.state["direction"] = torch.randint(-1, 2, (groups(loop),), dtype=torch.int8)
    sections = method.broadcast(server, 2)
    assert groups(loop) / 8 < len(encode("weights", 2, -1, sections)) <= groups(loop) / 4 + 100
    assert method.broadcast(server, 1) == {}


def test_a_mask_is_sent_once_to_whoever_has_it() -> None:
    loop = toy_loop(FedAvg(density=0.3))
    downs = [loop.round(t)["bytes_down"] for t in range(3)]
    assert downs[0] > downs[1] == downs[2]
    assert sum(layer.topology.nnz for layer in sparse_layers(loop.server.model).values()) < groups(loop) / 3
