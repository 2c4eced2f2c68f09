"""PruneFL: Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", TNNLS 2022.

One client prunes the model on its own data; then, every dT rounds, the server keeps the mask M that maximises
Gamma(M) = sum_{j in M} g_j^2 / (c + sum_{j in M} t_j), the risk reduction per second of a round. The size is an output.

Masks start full: every prunable layer is a sparse layer with all its weights active. A minibatch's own gradient exists
a layer at a time, during the backward pass.

Departures: t_j is measured on the server's device by default: seconds a weight of the layer's own sparse kernels times
the local updates of a round, plus 8 bytes over `link_rate`; c is the rest of an update and the dense parameters' bytes.
Clients keep nothing between rounds (they are sampled, and nothing of theirs is in a checkpoint), so g_j^2 is that of
the adjustment round, in which alone it is sent; with `window` = dT the server accumulates it over the interval, as the
paper does on the clients, at the price of sending it in each round. What is never pruned counts in both sums of Gamma,
as in the authors' code, unless `dense_gain` is off. Ours: the initial client is the one with the most samples (the next
where its answer is refused), its accuracy that on the minibatches it trains on; each counts as a round, q stays `free`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.client import iterate
from fedsparse.federated.gradient_norms import GradientNormsMethod
from fedsparse.federated.method import Ask, Sections
from fedsparse.federated.opening import ask_one, check_model
from fedsparse.federated.timing import seconds_of
from fedsparse.nn import add_gradients, sparse_layers, sparsify
from fedsparse.pruning import reconfigure
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, BitmapSpec, Bits, Section, Spec, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

_Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class PruneFL(GradientNormsMethod):
    """PruneFL, with the settings of the authors' code; see GradientNormsMethod for the fields that are not here.

    free, half_life: all active weights of a layer but the smallest share q = free * 0.5^(t / half_life) are protected.
    max_density: no weight is added beyond it. initial_limit: at most so many minibatches of initial pruning, 0 for
    none; it reconfigures every initial_interval of them from an accuracy of start_accuracy / classes on, and ends when
    `patience` times in a row the size changed by at most the share `tolerance`. weight_seconds: t_j in seconds of a
    round, for all layers or by layer name, with constant_seconds c, in place of what is measured (either is
    `server.state["seconds"]`). link_rate: bytes a second, each way. dense_gain: whether the gradients of what is never
    pruned count in Gamma's numerator.
    """

    name: ClassVar[str] = "prunefl"
    free: Annotated[float, Field(ge=0, lt=1)] = 0.3
    half_life: Annotated[float, Field(gt=0)] = 10000.0
    max_density: Annotated[float, Field(gt=0, le=1)] = 1.0
    initial_limit: Annotated[int, Field(ge=0)] = 10000
    initial_interval: Annotated[int, Field(ge=1)] = 500
    start_accuracy: Annotated[float, Field(ge=0)] = 1.5
    tolerance: Annotated[float, Field(ge=0)] = 0.1
    patience: Annotated[int, Field(ge=1)] = 5
    weight_seconds: _Seconds | dict[str, _Seconds] | None = None
    constant_seconds: Annotated[float, Field(ge=0)] = 0.0
    link_rate: Annotated[float, Field(gt=0)] = 1.4e6

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make every prunable layer sparse with all its weights active."""
        return sparsify(model, dict.fromkeys(self.prunes(model), 1.0), granularity=self.granularity)

    def start(self, server: Server) -> None:
        """Learn t_j of each layer, and c after the last: float64 [layers + 1]."""
        given = self.weight_seconds, self.constant_seconds
        server.state["seconds"] = seconds_of(server, *given, self.link_rate)

    def probe(self, server: Server, ask: Ask) -> None:
        """Before round 0: take the mask and the weights of the client with the most samples."""
        if not self.initial_limit:
            return
        sections = exchange.sections(server.model, "fp32", 0) | {"seconds": Values(server.state["seconds"])}
        expect: dict[str, Spec] = {
            "mask": BitmapSpec(size=exchange.group_count(server.model)),
            "parameters": ValuesSpec(dtype="float32"),
            "buffers": ValuesSpec(size=server.buffer_count, dtype="float32"),
        }
        total = ask_one(ask, server, "prune_alone", sections, expect)
        server.set_mask_bits(Bits.of_mask((total.mean("mask") > 0.5).numpy()))
        server.load(total.mean("parameters"), total.mean("buffers"))

    def prune_alone(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: train and reconfigure in turn until the size is stable."""
        model = client.model.train()
        seconds = cast(Values, sections["seconds"]).tensor()
        size, started, stable = exchange.group_count(model), False, 0
        exchange.load_mask(model, Bits.all(size), self.prunes(model), self.granularity, client.training.memory)
        exchange.load_vectors(model, exchange.vectors(sections))
        batches = chain.from_iterable(client.batches(f"initial {p}", client.training.augment) for p in count())
        with add_gradients(model, client.memory, torch.square):
            for done in range(0, self.initial_limit, self.initial_interval):
                accuracy = self._train(client, islice(batches, min(self.initial_interval, self.initial_limit - done)))
                started = started or accuracy >= self.start_accuracy / client.data.classes
                if started:
                    self._reconfigure(client, seconds)
                    before, size = size, exchange.mask_bits(model).count
                    stable = stable + 1 if abs(size / before - 1) <= self.tolerance else 0
                if stable == self.patience:
                    break
        return {"mask": Bitmap(exchange.mask_bits(model))} | exchange.sections(model, "fp32", 0)

    def _train(self, client: Client, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Train on the batches; the share of targets that the model got right before each step."""
        right = seen = 0
        for x, y in batches:
            output, _ = iterate(client, self, x, y)
            right, seen = right + int((output.argmax(-1) == y).sum()), seen + y.numel()
        return right / seen

    def _reconfigure(self, client: Client, seconds: Tensor) -> None:
        """Give the client's layers the masks of greatest Gamma by the squares in its memory, and forget these."""
        layers = sparse_layers(client.model)
        squares = self.by_group(client.model, client.memory)
        client.memory.clear()
        for name, topology in self._best(client.model, squares, seconds, 0).items():
            client.change_mask(layers[name], topology)

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Square norms; refuse an answer of initial pruning that is no model."""
        if isinstance(mask := sections.get("mask"), Bitmap):
            check_model(server.model, mask, sections["parameters"])
        return super().digest(server, sections, t)

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask; in an adjustment round a new mask by what was summed in the window."""
        super().update(server, total, t)
        if (squares := self.squares(server, total, t)) is not None:
            server.change_masks(self._best(server.model, squares, server.state["seconds"], t))

    def _best(self, model: nn.Module, squares: Tensor, seconds: Tensor, t: int) -> dict[str, Topology]:
        layers = sparse_layers(model)
        topologies = {name: layer.topology for name, layer in layers.items()}
        values = {name: layer.values for name, layer in layers.items()}
        free = self.free * 0.5 ** (t / self.half_life)
        return reconfigure(topologies, values, squares, seconds, free, self.max_density)
