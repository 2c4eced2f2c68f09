"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

Sampled clients train E epochs of SGD from w_t; w_{t+1} = sum p_k w_k, norm statistics averaged with the same weights.
With `density` below 1 the same on a fixed mask chosen before round 0: the baseline of every dynamic method.

`training` holds E and B of the paper's CNN on MNIST (99 % in 20 rounds); its learning rates are tuned for each problem,
so lr, momentum and weight decay are ours.

Departures: none for the dense method. The fixed mask is ours; the data-dependent scores (SNIP, GraSP) are computed by
the client with the most samples, which sends the mask, since the server has no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedsparse.federated.masked_method import MaskedMethod


@dataclass(frozen=True)
class FedAvg(MaskedMethod):
    """FedAvg, dense (`density` = 1) or on a fixed mask; see MaskedMethod for the fields."""

    name: ClassVar[str] = "fedavg"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 5, "batch_size": 10}
