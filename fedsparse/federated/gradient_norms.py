"""What methods share that judge every weight, active or not, by the squares of its summed gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsparse.federated import exchange
from fedsparse.federated.method import Sections
from fedsparse.federated.pruning_method import PruningMethod
from fedsparse.federated.seeds import derive
from fedsparse.federated.total import LIMIT
from fedsparse.federated.validate import UpdateError
from fedsparse.nn import add_gradients, sparse_layers
from fedsparse.pruning import highest
from fedsparse.wire import Pairs, PairsSpec, Quantised, Section, Spec, Values, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

_LARGEST = 0.999 * LIMIT**0.5  # of a norm, so that its square can be summed


@dataclass(frozen=True)
class GradientNormsMethod(PruningMethod):
    """A method whose clients report the norms of each group's gradients, summed over a round's minibatches.

    A client holds one float32 for every weight in the rounds that ask for it. The server squares the norms and holds
    their weighted sum until the adjustment.

    interval dT and last T_end: adjustment rounds are t % dT == 0, 0 < t <= T_end; 0 is the end of the run. window: so
    many rounds, the last an adjustment round, add to g^2. gradient_wire: how norms travel, "int8" with a scale a layer
    and stochastic rounding; gradient_share: the share of groups whose norms do, the largest ones, not as int8.
    dense_gain: whether the gradients of what is never pruned count.
    """

    interval: Annotated[int, Field(ge=1)] = 50
    last: Annotated[int, Field(ge=0)] = 0
    window: Annotated[int, Field(ge=1)] = 1
    gradient_wire: Literal["fp32", "fp16", "int8"] = "fp32"
    gradient_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    dense_gain: bool = True

    def __post_init__(self) -> None:
        """Refuse (ValueError) int8 for a share: pairs of index and value have no scale."""
        super().__post_init__()
        if self.gradient_wire == "int8" and self.gradient_share < 1:
            raise ValueError(f"gradient_share is {self.gradient_share} but must be 1 where gradient_wire is 'int8'")

    def asks(self, t: int) -> bool:
        """Whether round t asks for norms."""
        adjustment = t + -t % self.interval
        return t > 0 and adjustment - t < self.window and (adjustment <= self.last or not self.last)

    def adjusts(self, t: int, rounds: int) -> bool:
        """Whether round t asks for norms."""
        return self.asks(t)

    def begin(self, client: Client) -> None:
        """Sum up gradients from here on, where the server will ask for them."""
        if self.asks(client.round):
            client.contexts.enter_context(add_gradients(client.model, client.memory))

    def report(self, client: Client) -> dict[str, Section]:
        """Weights and norm statistics; where asked also the norms of the summed gradients, never pruned ones last."""
        sections = super().report(client)
        if not self.asks(client.round):
            return sections
        for gradient in client.memory.values():
            gradient.square_()
        norms = self.by_group(client.model, client.memory).sqrt_().clamp_(max=_LARGEST)
        if self.gradient_wire == "int8":
            sizes = [layer.topology.numel // self.granularity for layer in sparse_layers(client.model).values()]
            seed = derive(client.seed, "wire/gradients", client.round, client.id)
            return sections | {"gradients": Quantised(norms, [*sizes, 1], seed)}
        if self.gradient_share == 1:
            return sections | {"gradients": Values(norms, wire=self.gradient_wire)}
        sent = torch.cat([highest(norms[:-1], self._sent(len(norms) - 1)), torch.tensor([len(norms) - 1])])
        return sections | {"gradients": Pairs(sent, norms[sent], len(norms), wire=self.gradient_wire)}

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """Where asked: a norm for every group, or for the share that is sent, and one for all that is never pruned."""
        if not self.asks(t):
            return super().expect(server, t)
        groups = exchange.group_count(server.model)
        spec: Spec = ValuesSpec(size=groups + 1, dtype="float32")
        if self.gradient_share < 1:
            spec = PairsSpec(size=groups + 1, count=self._sent(groups) + 1, dtype="float32")
        return super().expect(server, t) | {"gradients": spec}

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Square norms."""
        gradients = sections.get("gradients")
        if not isinstance(gradients, Values | Pairs):
            return sections
        squares = gradients.tensor().square()
        if bool((squares >= LIMIT).any()):
            raise UpdateError(f"gradients hold a norm of {LIMIT**0.5:g} or more")
        if isinstance(gradients, Pairs):
            return {**sections, "gradients": Pairs(gradients.indices, squares, gradients.size)}
        return {**sections, "gradients": Values(squares)}

    def squares(self, server: Server, total: Total, t: int) -> Tensor | None:
        """g^2 by group, then of what is never pruned, as summed up by round t; None but in an adjustment round.

        Between rounds of the window the sum is `server.state["squares"]`.
        """
        if not self.asks(t):
            return None
        if self.gradient_share < 1:
            indices, sent = total.pairs("gradients")
            squares = torch.zeros(exchange.group_count(server.model) + 1).index_put((indices,), sent)
        else:
            squares = total.mean("gradients")
        squares = squares + server.state.pop("squares", 0.0)
        if t % self.interval == 0:
            return squares
        server.state["squares"] = squares
        return None

    def by_group(self, model: nn.Module, squares: Mapping[str, Tensor]) -> Tensor:
        """Squares by layer and parameter, summed: over each group of the mask, then over all that is never pruned."""
        V, layers = self.granularity, sparse_layers(model)
        weights = [squares.get(name, torch.zeros(layer.weight_shape)) for name, layer in layers.items()]
        groups = [w.reshape(len(w) // V, V, -1).sum(1).flatten() for w in weights]
        rest = sum(float(s.sum()) for name, s in squares.items() if name not in layers) if self.dense_gain else 0.0
        return torch.cat([*groups, groups[0].new_tensor([rest])]).cpu()

    def _sent(self, groups: int) -> int:
        return max(1, int(self.gradient_share * groups))
