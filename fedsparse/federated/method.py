"""The hooks by which a method says what it does; everything else (transport, sums, seeds, files) is the loop's.

A method is a frozen dataclass of hyper-parameters. Its state is explicit: the server's model (weights and masks) and
`server.state`, named tensors. A hook that a method does not override does what FedAvg does. In the order in which they run:

| hook | where, when |
| --- | --- |
| prepare(model) | both sides, once: exchange layers |
| start(server) | server, once: first mask, state tensors |
| probe(server, ask) | server, before round 0: `ask(task, sections, clients)` has the method's function `task` run on clients |
| broadcast(server, t) | server, each round: sections that travel beside the weights |
| begin(client) | client, before its first batch |
| loss(client, output, target) | client, each batch: what is differentiated |
| step(client) | client, each batch, after the backward pass |
| epoch_end(client, epoch) | client, after each epoch |
| report(client) | client, last: the sections it sends |
| expect(server, t) | server: what a report must look like, or it is refused |
| digest(server, sections, t) | server, each accepted report before it is summed: derive sections that add |
| update(server, total, t) | server: new weights and masks from the sum of reports |

With `[ranks] sums = "local"` the ranks call `expect` and `digest` too: `server` then has the masks, the weights as they
were sent, samples, seed and training, but no `state`.

Why these suffice, method by method (a dash: FedAvg's):

| | start, probe | on the client | report and expect | update |
| --- | --- | --- | --- | --- |
| FedAvg | mask by score, or scored by a client (probe) | - | weights, buffers | weighted mean |
| PruneFL | prepare: all weights active; times measured in start; probe: `ask` one client to prune and send mask and weights | begin: sum gradients until training ends, `client.contexts` | + norms of the sums, adjustment rounds; digest: their squares | mean; mask of any size from g^2/t |
| FedDST | mask in start | epoch_end: prune, grow by the last batch's gradient, `client.change_mask` | + the mask (adjustment rounds); digest: Masked by coordinate | masked mean, union, top K_l |
| FedTiny | probe: norm statistics, then losses of candidates | - | + Pairs of grown candidates | mean; prune and grow a block |
| FedMef | prepare: NSConv; mask in start | begin: the low weights; loss: + their norm; step: learning rate | + Pairs | mean; prune and grow |
| FedSGC | broadcast: 2-bit direction map | epoch_end with `client.received` | as FedDST, + Pairs of gradients | masked mean with the old model, union, top K_l |
| FedRTS | posteriors in `server.state` | - | + Indices; digest: the report's own top-kappa as a Bitmap | posteriors, Thompson sampling |
| SSFL | probe: all clients score the dense weights | - | weights, buffers | weighted mean |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fedsparse.federated import exchange, feedback
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.seeds import derive
from fedsparse.nn import Levels
from fedsparse.wire import Section, Spec, ValuesSpec

if TYPE_CHECKING:
    from fedsparse.federated.client import Client
    from fedsparse.federated.server import Server
    from fedsparse.federated.total import Total

Sections = Mapping[str, Section]
Ask = Callable[[str, Sections, Mapping[str, Spec], Sequence[int] | None], "Total"]


@cache
def _adapters(method: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(method, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(method)}


@dataclass(frozen=True)
class Method:
    """Federated averaging of whatever is active; the base of every method.

    training: the settings of local training that the method's paper states, by the fields of `Training`. They hold
    where a configuration's `[train]` leaves them out; what is not in it has the defaults of `[train]`, which are ours.
    """

    name: ClassVar[str] = "method"
    training: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        """Hold every field against its annotation; ValueError names the first that does not fit."""
        for field, adapter in _adapters(type(self)).items():  # type: ignore[arg-type]
            try:
                adapter.validate_python(getattr(self, field))
            except ValidationError as error:
                given = getattr(self, field)
                raise ValueError(f"{self.name}.{field} is {given!r}: {error.errors()[0]['msg']}") from None

    @property
    def granularity(self) -> int:
        """V of the masks: consecutive output channels that share a column."""
        return 1

    def prunes(self, model: nn.Module) -> list[str]:
        """Names of the layers that masks are made for, in the model's order; none for a dense method."""
        return []

    def adjusts(self, t: int, rounds: int) -> bool:
        """Whether clients do more in round t of `rounds` than train: they help to adjust the masks."""
        return False

    def adjustments(self, rounds: int) -> list[int]:
        """One adjustment round of each kind, the costliest: the first."""
        return [t for t in range(rounds) if self.adjusts(t, rounds)][:1]

    @property
    def activations(self) -> Levels:
        """What layers keep for the backward pass where the run's `Training` does not say (`nn.keep_activations`)."""
        return "dense"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change the freshly built model, on both sides."""
        return model

    def start(self, server: Server) -> None:
        """Choose the first mask and make the state tensors."""

    def probe(self, server: Server, ask: Ask) -> None:
        """Exchange what must be exchanged before round 0."""

    def broadcast(self, server: Server, t: int) -> dict[str, Section]:
        """Sections that travel down beside parameters, buffers and mask."""
        return {}

    def begin(self, client: Client) -> None:
        """Prepare a client's round."""

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        """The scalar that is differentiated: cross-entropy. output: [B, classes]; target: int64 [B]."""
        return cross_entropy(output, target)

    def step(self, client: Client) -> None:
        """Use the gradients."""
        client.optimizer.descend()

    def epoch_end(self, client: Client, epoch: int) -> None:
        """After local epoch `epoch`, counted from 0."""

    def report(self, client: Client) -> dict[str, Section]:
        """What the client sends: its parameters and buffers."""
        rounds = client.wire == "int8"
        seed = derive(client.seed, "wire", client.round, client.id) if rounds else 0
        sections = exchange.sections(client.tensors, client.wire, seed)
        return sections | {"parameters": feedback.parameters(client, seed)} if client.feedback else sections

    def expect(self, server: Server, t: int) -> dict[str, Spec]:
        """What a report of round t must hold."""
        return {
            "parameters": ValuesSpec(size=server.parameter_count, dtype="float32"),
            "buffers": ValuesSpec(size=server.buffer_count, dtype="float32"),
        }

    def digest(self, server: Server, sections: Sections, t: int) -> Sections:
        """Turn one validated report into what is summed; raise UpdateError if the method sees that it is wrong."""
        return sections

    def update(self, server: Server, total: Total, t: int) -> None:
        """Set the server's weights to the weighted mean of the reports."""
        server.load(total.mean("parameters"), total.mean("buffers"))
