"""PruneFL: Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", TNNLS 2022.

One client prunes the model on its own data; then, every dT rounds, the server keeps the mask M that maximises
Gamma(M) = sum_{j in M} g_j^2 / (c + sum_{j in M} t_j), the risk reduction per second of a round. The size is an output.

What is held where: a client holds the sums of its gradients over the round's minibatches, one float32 for every weight,
active or not, in the rounds of `window` only; a minibatch's own gradient exists a layer at a time, during the backward
pass. The client sends the norm of each group's sums, squared by the server, which holds their weighted sum until the
adjustment. Masks start full: every prunable layer is a sparse layer with all its weights active.

Departures: t_j is measured on the server's device by default: seconds a weight of the layer's own sparse kernels times
the local updates of a round, plus 8 bytes over `link_rate`; c is the rest of an update and the dense parameters' bytes.
Clients keep nothing between rounds, so g_j^2 is that of the adjustment round; with `window` = dT it is summed over the
interval, as in the authors' code, and sent in each of its rounds. What is never pruned counts in both sums of Gamma, as
there, unless `dense_gain` is off. Ours: the initial client is the one with the most samples (the next where its answer
is refused); its accuracy is that on the minibatches it trains on; each of these counts as a round, and q stays `free`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.errors import RunError
from fedsparse.federated.method import Ask, Method, Sections
from fedsparse.federated.timing import round_seconds
from fedsparse.federated.total import LIMIT
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import add_gradients, prunable, sparse_layers, sparsify, weight_shapes
from fedsparse.pruning import highest, reconfigure
from fedsparse.topology import Topology
from fedsparse.wire import Bitmap, BitmapSpec, Pairs, PairsSpec, Section, Spec, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

_Seconds = Annotated[float, Field(gt=0)]
_LARGEST = 0.999 * LIMIT**0.5  # of a norm, so that its square can be summed


@dataclass(frozen=True)
class PruneFL(Method):
    """PruneFL, with the settings of the authors' code.

    interval dT: adjustment rounds are t % dT == 0, t > 0. free, half_life: all active weights of a layer but the
    smallest share q = free * 0.5^(t / half_life) are protected. max_density: no weight is added beyond it. window: so
    many rounds, the last an adjustment round, add to g^2. initial_limit: at most so many minibatches of initial
    pruning, 0 for none; it reconfigures every initial_interval of them from an accuracy of start_accuracy / classes on,
    and ends when `patience` times in a row the size changed by at most the share `tolerance`. gradient_wire: how norms
    travel; gradient_share: the share of groups whose norms do, the largest ones. weight_seconds: t_j in seconds of a
    round, for all layers or by layer name, with constant_seconds c, in place of what is measured (either is
    `server.state["seconds"]`). link_rate: bytes a second, each way. dense_gain: whether the gradients of what is
    never pruned count in Gamma's numerator. granularity: V of Vx1 masks. prune_last: whether the last linear layer is
    pruned too.
    """

    name: ClassVar[str] = "prunefl"
    interval: Annotated[int, Field(ge=1)] = 50
    free: Annotated[float, Field(ge=0, lt=1)] = 0.3
    half_life: Annotated[float, Field(gt=0)] = 10000.0
    max_density: Annotated[float, Field(gt=0, le=1)] = 1.0
    window: Annotated[int, Field(ge=1)] = 1
    initial_limit: Annotated[int, Field(ge=0)] = 10000
    initial_interval: Annotated[int, Field(ge=1)] = 500
    start_accuracy: Annotated[float, Field(ge=0)] = 1.5
    tolerance: Annotated[float, Field(ge=0)] = 0.1
    patience: Annotated[int, Field(ge=1)] = 5
    gradient_wire: Literal["fp32", "fp16"] = "fp32"
    gradient_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_seconds: _Seconds | dict[str, _Seconds] | None = None
    constant_seconds: Annotated[float, Field(ge=0)] = 0.0
    link_rate: Annotated[float, Field(gt=0)] = 1.4e6
    dense_gain: bool = True
    granularity: Annotated[int, Field(ge=1, le=64)] = 1
    prune_last: bool = False

    def prunes(self, model: nn.Module) -> list[str]:
        """All prunable layers."""
        return list(prunable(model, self.prune_last))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make every prunable layer sparse with all its weights active."""
        shapes = weight_shapes(prunable(model, self.prune_last))
        full = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        return sparsify(model, masks=full, granularity=self.granularity)

    def start(self, server: Server) -> None:
        """Learn t_j of each layer, and c after the last: float64 [layers + 1]."""
        weight, constant = self.weight_seconds, self.constant_seconds
        if weight is None:
            weight, constant = round_seconds(server, self.link_rate)
        if not isinstance(weight, dict):
            weight = dict.fromkeys(server.layers, weight)
        if weight.keys() != server.layers.keys():
            raise ValueError(
                f"method.weight_seconds names {', '.join(weight)}, but the pruned layers are {', '.join(server.layers)}"
            )
        server.state["seconds"] = torch.tensor([*(weight[n] for n in server.layers), constant], dtype=torch.float64)

    # Before round 0: initial pruning at one client.

    def probe(self, server: Server, ask: Ask) -> None:
        """Take the mask and the weights of the client with the most samples."""
        if not self.initial_limit:
            return
        sections: Sections = {
            "parameters": Values(exchange.parameters(server.model)),
            "buffers": Values(exchange.buffers(server.model)),
            "seconds": Values(server.state["seconds"]),
        }
        expect: dict[str, Spec] = {
            "mask": BitmapSpec(size=self._groups(server.model)),
            "parameters": ValuesSpec(dtype="float32"),
            "buffers": ValuesSpec(size=server.buffer_count, dtype="float32"),
        }
        by_size = sorted(range(len(server.samples)), key=lambda id: -server.samples[id])
        for id in by_size:
            try:
                total = ask("prune_alone", sections, expect, [id])
            except RunError:
                if id == by_size[-1]:
                    raise
            else:
                server.set_mask_bits(total.mean("mask") > 0.5)
                server.load(total.mean("parameters"), total.mean("buffers"))
                return

    def prune_alone(self, client: Client, sections: Sections) -> dict[str, Section]:
        """On the client: train and reconfigure in turn until the size is stable."""
        model = client.model.train()
        full = torch.ones(self._groups(model), dtype=torch.bool)
        exchange.load_mask(model, full, self.prunes(model), self.granularity)
        exchange.load(model, sections)
        passes = (client.batches(f"initial {p}", client.training.augment) for p in count())
        batches = chain.from_iterable(passes)
        started, size, stable = False, float(len(full)), 0
        with add_gradients(model, client.memory, torch.square):
            for _ in range(self.initial_limit // self.initial_interval):
                accuracy = self._train(client, islice(batches, self.initial_interval))
                started = started or accuracy >= self.start_accuracy / client.data.classes
                if started:
                    self._reconfigure(client, sections["seconds"])
                    before, size = size, float(exchange.mask(model).sum())
                    stable = stable + 1 if abs(size / before - 1) <= self.tolerance else 0
                if stable == self.patience:
                    break
        return {
            "mask": Bitmap(exchange.mask(model)),
            "parameters": Values(exchange.parameters(model)),
            "buffers": Values(exchange.buffers(model)),
        }

    def _train(self, client: Client, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Train on the batches; the share of targets that the model got right before each step."""
        right = seen = 0
        for x, y in batches:
            client.optimizer.zero_grad(set_to_none=True)
            output = client.model(x)
            self.loss(client, output, y).backward()
            client.optimizer.step()
            right, seen = right + int((output.argmax(-1) == y).sum()), seen + y.numel()
        return right / seen

    def _reconfigure(self, client: Client, seconds: Section) -> None:
        """Give the client's layers the masks of greatest Gamma by the squares in its memory, and forget these."""
        if not isinstance(seconds, Values):
            raise TypeError("seconds are values")
        layers = sparse_layers(client.model)
        squares = self._by_group(client.model, client.memory)
        client.memory.clear()
        for name, topology in self._best(client.model, squares, seconds.tensor(), 0).items():
            client.change_mask(layers[name], topology)

    # Every dT rounds: further pruning.

    def _asks(self, t: int) -> bool:
        return t > 0 and -t % self.interval < self.window

    def begin(self, client: Client) -> None:
        """Sum up gradients from here on, where the server will ask for them."""
        if self._asks(client.round):
            client.contexts.enter_context(add_gradients(client.model, client.memory))

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; where asked also the norms of the summed gradients, never pruned ones last."""
        sections = super().report(client)
        if not self._asks(client.round):
            return sections
        for gradient in client.memory.values():
            gradient.square_()
        norms = self._by_group(client.model, client.memory).sqrt_().clamp_(max=_LARGEST)
        if self.gradient_share == 1:
            return sections | {"gradients": Values(norms, wire=self.gradient_wire)}
        sent = torch.cat([highest(norms[:-1], self._sent(len(norms) - 1)), torch.tensor([len(norms) - 1])])
        return sections | {"gradients": Pairs(sent, norms[sent], len(norms), wire=self.gradient_wire)}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """Where asked: a norm for every group, or for the share that is sent, and one for all that is never pruned."""
        if not self._asks(t):
            return super().expect(server, t)
        groups = self._groups(server.model)
        spec: Spec = ValuesSpec(size=groups + 1, dtype="float32")
        if self.gradient_share < 1:
            spec = PairsSpec(size=groups + 1, count=self._sent(groups) + 1, dtype="float32")
        return super().expect(server, t) | {"gradients": spec}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Check the answer of initial pruning; square norms."""
        mask, gradients = sections.get("mask"), sections.get("gradients")
        if isinstance(mask, Bitmap):
            self._check_answer(server, torch.as_tensor(mask.mask), sections["parameters"])
        if not isinstance(gradients, Values | Pairs):
            return sections
        squares = gradients.tensor().square()
        if bool((squares >= LIMIT).any()):
            raise UpdateError(f"gradients hold a norm of {LIMIT**0.5:g} or more")
        if isinstance(gradients, Pairs):
            return {**sections, "gradients": Pairs(gradients.indices, squares, gradients.size)}
        return {**sections, "gradients": Values(squares)}

    def _check_answer(self, server: Server, mask: Tensor, parameters: Section) -> None:
        pruned = self.granularity * int((~mask).sum())  # of a model that is still full
        if not isinstance(parameters, Values) or len(parameters.array) != server.parameter_count - pruned:
            raise UpdateError(
                f"its mask prunes {pruned} weights, but its parameters are {parameters.nbytes // 4} numbers"
            )
        for name, (groups,) in exchange.split_by_layer(server.model, mask.nonzero().flatten()).items():
            if len(groups) == 0:
                raise UpdateError(f"its mask leaves {name} without weights")

    def update(self, server: Server, total: Total, t: int) -> None:
        """FedAvg over the common mask; in an adjustment round a new mask by what was summed in the window."""
        super().update(server, total, t)
        if not self._asks(t):
            return
        if self.gradient_share < 1:
            indices, sent = total.pairs("gradients")
            squares = torch.zeros(self._groups(server.model) + 1).index_put((indices,), sent)
        else:
            squares = total.mean("gradients")
        squares = squares + server.state.pop("squares", 0.0)
        if t % self.interval:
            server.state["squares"] = squares
        else:
            server.change_masks(self._best(server.model, squares, server.state["seconds"], t))

    def _best(self, model: nn.Module, squares: Tensor, seconds: Tensor, t: int) -> dict[str, Topology]:
        layers = sparse_layers(model)
        topologies = {name: layer.topology for name, layer in layers.items()}
        values = {name: layer.values for name, layer in layers.items()}
        free = self.free * 0.5 ** (t / self.half_life)
        return reconfigure(topologies, values, squares, seconds, free, self.max_density)

    def _by_group(self, model: nn.Module, squares: Mapping[str, Tensor]) -> Tensor:
        """Squares by layer and parameter, summed: over each group of the mask, then over all that is never pruned."""
        V, layers = self.granularity, sparse_layers(model)
        weights = [squares.get(name, torch.zeros(layer.weight_shape)) for name, layer in layers.items()]
        groups = [w.reshape(len(w) // V, V, -1).sum(1).flatten() for w in weights]
        rest = sum(float(s.sum()) for name, s in squares.items() if name not in layers) if self.dense_gain else 0.0
        return torch.cat([*groups, groups[0].new_tensor([rest])]).cpu()

    def _groups(self, model: nn.Module) -> int:
        return exchange.mask_size(model, self.prunes(model), self.granularity)

    def _sent(self, groups: int) -> int:
        return max(1, int(self.gradient_share * groups))
