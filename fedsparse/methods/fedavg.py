"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

Sampled clients train E epochs of SGD from w_t; w_{t+1} = sum p_k w_k, norm statistics averaged with the same weights.
With `density` below 1 the same on a fixed mask chosen before round 0: the baseline of every dynamic method.

Departures: none for the dense method. The fixed mask is ours; the data-dependent scores (SNIP, GraSP) are computed by
the client with the most samples, which sends the mask, since the server has no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsparse.federated.masked_method import MaskedMethod


@dataclass(frozen=True)
class FedAvg(MaskedMethod):
    """FedAvg, dense (`density` = 1) or on a fixed mask; see MaskedMethod for the fields."""

    name: ClassVar[str] = "fedavg"
