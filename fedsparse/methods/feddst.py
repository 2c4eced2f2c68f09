"""FedDST: Bibikar et al., "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning Better",
AAAI 2022.

In adjustment rounds each client prunes its smallest weights in mid round and grows those of largest gradient; the
server averages every coordinate over the clients that have it and prunes the union back by magnitude. All of
`training` is the paper's.

Departures: the paper's formula a(t) = alpha c(t) holds (the authors' code multiplies alpha in twice). The epochs
before the adjustment are ours, half of them: `adjust_after`. With one local epoch a client adjusts before it, on the
gradient of a first minibatch, because a weight grown after the last step is 0 and would not survive the server's
pruning. A weight that the client has just pruned may be grown again, at 0. A layer with fewer than k_l inactive weights
adjusts only as many. FedProx is `proximal` of the training, for any method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedsparse.federated import coordinates
from fedsparse.federated.client_masks import ClientMasksMethod
from fedsparse.federated.growth import find_growth
from fedsparse.nn import sparse_layers
from fedsparse.pruning import group_sums, lowest, with_groups, without_groups

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


@dataclass(frozen=True)
class FedDST(ClientMasksMethod):
    """FedDST at total density `density`; see ClientMasksMethod for the fields.

    T_end (`last`) is half of the rounds. `rate` is alpha: .01 is the paper's for CIFAR, .05 for MNIST.
    """

    name: ClassVar[str] = "feddst"
    training: ClassVar[Mapping[str, Any]] = {
        "epochs": 10,
        "batch_size": 32,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-3,
    }
    end: ClassVar[float] = 1 / 2

    def adjust(self, client: Client, counts: dict[str, int]) -> None:
        """Prune the k_l lowest |w|, then grow the k_l inactive weights of largest |g| on the last minibatch."""
        layers = sparse_layers(client.model)
        for name, count in counts.items():
            topology, values = layers[name].topology, layers[name].values.detach()
            smallest = lowest(group_sums(topology, values.abs()), count)
            client.change_mask(layers[name], without_groups(topology, smallest))
        for name, grown in find_growth(client, self, counts, self.last_batches(client)).items():
            client.change_mask(layers[name], with_groups(layers[name].topology, grown.groups))

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask; in an adjustment round the mean per coordinate, pruned to the K_l largest."""
        if self.counts(server.model, t, server.training.rounds):
            coordinates.load_largest(server, coordinates.merge(server, total))
        else:
            super().update(server, total, t)
