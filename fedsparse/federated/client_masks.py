"""What methods share whose clients change the mask in mid round: when they do, and what they send of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import nn

from fedsparse.federated import coordinates, exchange
from fedsparse.federated.growth import Batches, growth_batches
from fedsparse.federated.masked_method import MaskedMethod
from fedsparse.federated.method import Sections
from fedsparse.nn import sparse_layers
from fedsparse.pruning import Decay, Schedule
from fedsparse.wire import Bitmap, BitmapSpec, Section, Spec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server


@dataclass(frozen=True)
class ClientMasksMethod(MaskedMethod, ABC):
    """A method whose `adjust` prunes and grows k_l weights of layer l on each client, in adjustment rounds.

    interval dT and last T_end: adjustment rounds are t % dT == 0, 0 < t < T_end; 0 means the method's own share of the
    rounds, `end`. decay: of c(t) from 1 to 0 along them. rate: k_l = floor(rate * c(t) * K_l), in groups, and at most
    the inactive ones. adjust_after: the share of the local epochs trained before the adjustment,
    A = floor(adjust_after * E), always below E, so that grown weights are trained. growth_batches: minibatches of the
    growth gradient, the one trained on last among them; 0 for all of the client's.
    """

    end: ClassVar[float]

    density: Annotated[float, Field(gt=0, lt=1)] = 0.2
    interval: Annotated[int, Field(ge=1)] = 10
    last: Annotated[int, Field(ge=0)] = 0
    decay: Decay = "cosine"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    adjust_after: Annotated[float, Field(ge=0, lt=1)] = 0.5
    growth_batches: Annotated[int, Field(ge=0)] = 1

    @abstractmethod
    def adjust(self, client: Client, counts: dict[str, int]) -> None:
        """Prune and grow `counts[name]` groups of each layer; the mask keeps its size."""

    def counts(self, model: nn.Module, t: int, rounds: int) -> dict[str, int]:
        """k_l in groups of each layer that round t of `rounds` adjusts; empty in an ordinary round."""
        if not self.adjusts(t, rounds):
            return {}
        share = self.rate * self._schedule(rounds).rate(t)
        counts = {}
        for name, layer in sparse_layers(model).items():
            topology = layer.topology
            counts[name] = min(int(share * topology.nnz + 1e-9), topology.numel - topology.nnz) // self.granularity
        return {name: count for name, count in counts.items() if count > 0}

    def adjusts(self, t: int, rounds: int) -> bool:
        """Whether 0 < t < T_end and t % dT == 0."""
        schedule = self._schedule(rounds)
        return schedule.adjusts(t) and t != schedule.last

    def _schedule(self, rounds: int) -> Schedule:
        return Schedule(self.interval, self.last or max(1.0, round(self.end * rounds, 9)), self.decay)

    def begin(self, client: Client) -> None:
        """Adjust before the first epoch where A = 0."""
        self._adjust_after(client, 0)

    def epoch_end(self, client: Client, epoch: int) -> None:
        """Adjust after epoch A."""
        self._adjust_after(client, epoch + 1)

    def _adjust_after(self, client: Client, epochs: int) -> None:
        total = client.training.epochs
        counts = self.counts(client.model, client.round, client.training.rounds)
        if counts and epochs == min(int(self.adjust_after * total + 1e-9), total - 1):
            self.adjust(client, counts)

    def last_batches(self, client: Client) -> Batches:
        """The minibatch trained on last, and others where `growth_batches` asks for them or none was trained on yet."""
        last = client.batch
        if self.growth_batches == 0 or last is None:
            return growth_batches(client, self.growth_batches)
        return lambda: chain([last], islice(client.batches("growth"), self.growth_batches - 1))

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; in an adjustment round also the client's mask."""
        sections = super().report(client)
        if not self.counts(client.model, client.round, client.training.rounds):
            return sections
        return sections | {"mask": Bitmap(exchange.mask_bits(client.model))}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """In an adjustment round: a mask with as many active groups as the server's."""
        specs = super().expect(server, t)
        if not self.counts(server.model, t, server.training.rounds):
            return specs
        active = sum(layer.topology.nnz for layer in server.layers.values()) // self.granularity
        return specs | {"mask": BitmapSpec(size=exchange.group_count(server.model), count=active)}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """In an adjustment round: refuse a mask of other counts a layer, and turn weights into coordinates."""
        adjusting = self.counts(server.model, t, server.training.rounds)
        return coordinates.digest(server, sections) if adjusting else sections
