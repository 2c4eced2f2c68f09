"""FedMef: Huang et al., "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024.

Weights that are about to be pruned are first driven towards 0, so that the others take over what they know
(budget-aware extrusion); activations are kept pruned for the backward pass, and NSConv takes the place of convolution
and batch norm so that small batches bear it (scaled activation pruning).

An adjustment round: the low weights of a layer, low_l, are the a_l active ones of lowest |w| among those that the
server sent, so server and clients know them alike. Clients train with the penalty and the raised learning rate, and
send their weights and the a_l inactive weights of largest |gradient|; the server averages, prunes low_l and grows the
top a_l |g~|.

Departures: the layer (gain, bias, grown weights' gradient) as `nn.nsconv` says, `gain` is its initial value; the share
of activations is taken in each sample (`ops.pack_activation`). The paper leaves lr_b open: ours is the learning rate of
the round, and lr_0 is that of round 0, times `extrusion_lr`. Since p(b) (2 sigmoid(||w_low||) - 1) < 1, the raised rate
acts where the run's schedule has fallen (`lr_decay`, "cosine"), or with extrusion_lr > 1; with a constant rate and the
default of 1 extrusion is the penalty alone. b counts the iterations done, so p = 1 at the first; ||w_low|| is over all
layers. A device's growth gradient is that of its locally trained model, computed from pruned activations, over
`growth_batches` batches. gamma = 0.5 is that of the authors' published code, not of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated.masked_method import MaskedMethod
from fedsparse.federated.server_growth import ServerGrowthMethod
from fedsparse.nn import Level, sparse_layers, standardise
from fedsparse.pruning import lowest_values, prune_and_grow

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total


@dataclass(frozen=True)
class FedMef(MaskedMethod, ServerGrowthMethod):
    """FedMef at total density `density`; the fields of MaskedMethod choose the first mask, random as in the paper.

    See ServerGrowthMethod for interval, last and growth_batches. rate: a_l = floor(rate * 2 c(t) K_l), in groups.
    penalty: lambda, 0 for none. extrusion_lr: lr_0 as a multiple of the learning rate of round 0 (ours; 1 is the
    paper's formula). gamma: the share of each conv input that is not kept for the backward pass; 0 keeps all that is
    not 0. store: how kept values are held. Where `train.activations` is given it holds instead of these two. gain: of
    every NSConv filter at the start; 1.7139 = sqrt(2 / (1 - 1 / pi)) keeps the variance through ReLUs.
    """

    name: ClassVar[str] = "fedmef"
    density: Annotated[float, Field(gt=0, lt=1)] = 0.1
    rate: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    penalty: Annotated[float, Field(ge=0)] = 1e-4
    extrusion_lr: Annotated[float, Field(ge=0)] = 1.0
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.5
    store: Literal["fp32", "bf16"] = "fp32"
    gain: Annotated[float, Field(gt=0)] = 1.0

    def prepare(self, model: nn.Module) -> nn.Module:
        """NSConv for convolution and batch norm."""
        return standardise(model, self.gain)

    @property
    def activations(self) -> str:
        """All convolutions keep the share 1 - gamma of their input."""
        return str(Level("pruned", 1 - self.gamma, self.store == "bf16"))

    def begin(self, client: Client) -> None:
        """Fix low_l: the positions, in each layer's values, of the weights that this round extrudes."""
        layers = sparse_layers(client.model)
        for name, count in self.counts(client.model, client.round).items():
            layer = layers[name]
            client.memory[name] = lowest_values(layer.topology, layer.values.detach(), count)

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        """The task's loss, in an adjustment round plus lambda * sum ||w_low||^2."""
        task = super().loss(client, output, target)
        return task + self.penalty * self._low_square(client) if client.memory else task

    def step(self, client: Client) -> None:
        """In an adjustment round at lr = max(lr_b, p(b) (2 sigmoid(||w_low||) - 1) lr_0)."""
        if client.memory:
            training = client.training
            norm = math.sqrt(float(self._low_square(client).detach()))
            raised = (
                self.extrusion_lr * training.learning_rate(0) * self.budget_decay(client.iteration, client.iterations)
            )
            # tanh(x / 2) = 2 sigmoid(x) - 1
            lr = max(training.learning_rate(client.round), raised * math.tanh(norm / 2))
            for group in client.optimizer.param_groups:
                group["lr"] = lr
        super().step(client)

    @staticmethod
    def budget_decay(b: int, budget: int) -> float:
        """p(b) = (2B - 2b) / (2B - b), from 1 at b = 0 to 0 at b = B."""
        return (2 * budget - 2 * b) / (2 * budget - b)

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask, then prune low_l, known from the weights sent, and grow the top a_l |g~|."""
        grown, topologies = self.best(server, total, self.counts(server.model, t)), {}
        sent = server.sent_values(t) if grown else {}
        for name, groups in grown.items():
            values = sent[name]
            topologies[name] = prune_and_grow(server.layers[name].topology, values, groups.to(values.device))
        super().update(server, total, t)
        if topologies:
            server.change_masks(topologies)

    def _low_square(self, client: Client) -> Tensor:
        layers = sparse_layers(client.model)
        return torch.stack([layers[name].values[low].square().sum() for name, low in client.memory.items()]).sum()

    def counts(self, model: nn.Module, t: int) -> dict[str, int]:
        """a_l in groups for each layer, at most as many as are inactive; empty where nothing is to be adjusted."""
        share = self.rate * 2 * self.schedule.rate(t) if self.schedule.adjusts(t) else 0.0
        return {name: count for name, count in self.shares(model, share).items() if count > 0}
