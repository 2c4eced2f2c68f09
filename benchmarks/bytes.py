"""Bytes of a round beside dense FedAvg: `python -m benchmarks.bytes [METHOD...] [--density D]`.

ResNet-18 (CIFAR), two clients that take part in every round, an adjustment every ten rounds until T_end = 300. Measured
are the five adjustments in the middle of the schedule, where the cosine decay of what is adjusted stands at its mean
(five, because FedTiny adjusts five blocks of layers in turn): of each the adjustment round and the one after it, in
which the new mask travels; the other eight rounds of an interval are like one another, and one of them is measured.
What is counted is the encoded messages of the rounds, headers, masks, grown weights and norm statistics included, by
direction. Data are four random images: bytes depend on the numbers' types and on the masks, not on what is learnt.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Loop, Method, Training
from fedsparse.methods import FedAvg, FedDST, FedMef, FedRTS, FedSGC, FedTiny
from fedsparse.wire import Carrier

ADJUSTMENTS, INTERVAL = (130, 140, 150, 160, 170), 10
WIRES: tuple[Carrier, ...] = ("fp32", "fp16", "int8")
GOALS = {"fp32": 19, "fp16": 38, "int8": 70}


def bytes_of(method: Method, wire: Carrier, adjustments: tuple[int, ...] = ADJUSTMENTS) -> tuple[float, float]:
    """Mean bytes a round and client, (down, up)."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3])
    data = Dataset("random", images, labels, 10, (0.0,) * 3, (1.0,) * 3)
    torch.manual_seed(0)
    model = models.build("resnet18", 10, channels=3, image_size=8)
    training = Training(rounds=300, clients_per_round=2, epochs=1, batch_size=2, lr=0.01, eval_every=1000)
    loop = Loop(Experiment(model, method, data, data, [np.arange(2), np.arange(2, 4)], training, wire=wire))
    loop.open()
    loop.round(ADJUSTMENTS[0] - 2)
    ordinary = loop.round(ADJUSTMENTS[0] - 1)
    records = [loop.round(t) for first in adjustments for t in (first, first + 1)]
    records += [ordinary] * max(1, len(adjustments) * (INTERVAL - 2))
    return tuple(sum(r[f"bytes_{way}"] for r in records) / len(records) / 2 for way in ("down", "up"))  # type: ignore[return-value]


def all_methods(density: float) -> dict[str, Method]:
    return {
        "fedavg": FedAvg(density=density),
        "fedtiny": FedTiny(density=density, pool=1, last=300),
        "feddst": FedDST(density=density, interval=10, last=300),
        "fedrts": FedRTS(density=density, interval=10, last=300),
        "fedsgc": FedSGC(density=density, interval=10, last=300),
        "fedmef": FedMef(density=density, interval=10, last=300),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=["fedavg", "fedtiny", "feddst"], help="of those below")
    parser.add_argument("--density", type=float, default=0.05)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense = bytes_of(FedAvg(), "fp32", ())
    print(f"ResNet-18, density {options.density:g}, bytes a round and client; dense fp32: {dense[0]:,.0f} down")
    print("| method | wire | down | up | dense fp32 / down | dense fp32 / up | goal |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.methods:
        method = all_methods(options.density)[name]
        for wire in WIRES:
            down, up = bytes_of(method, wire)
            ratios = f"{dense[0] / down:.1f} | {dense[1] / up:.1f}"
            print(f"| {name} | {wire} | {down:,.0f} | {up:,.0f} | {ratios} | {GOALS[wire]} |", flush=True)


if __name__ == "__main__":
    main()
