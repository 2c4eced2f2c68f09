"""Several clients' dense steps on one GPU: one after the other, and together in grouped convolutions.

Together, client k owns channels k C to (k + 1) C of every feature map: convolutions have one group a client, batch
norm over the concatenated channels is each client's own, and the classifier is a batched product. So every client
takes exactly the step that it would take alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bench import Bench, checked, relative_error
from .rows import Case, Measured
from .training import (
    LAYOUTS,
    STEP_LIMITS,
    TrainingStep,
    at_least_float32,
    batch_of,
    captured,
    mean_loss,
    network,
    with_layout,
)

BATCH = 64
COUNTS = (10, 16, 4, 1)


class GroupedLinear(nn.Module):
    """One linear layer a client: [B, K * C] to [B, K * N], by a batched product."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Client k's features times client k's weight."""
        clients = x.unflatten(1, (self.weight.shape[0], -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], clients, self.weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def together(models: Sequence[nn.Module]) -> nn.Module:
    """One network that holds all clients' weights; the first model's modules are replaced, the others stay."""
    first = models[0]
    for name, module in list(first.named_modules()):
        same = [model.get_submodule(name) for model in models]
        if (merged := _merged(module, same)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(first.get_submodule(parent), child, merged)
    return first


def _merged(module: nn.Module, same: Sequence[nn.Module]) -> nn.Module | None:
    count = len(same)
    if isinstance(module, nn.Linear):
        return GroupedLinear([layer for layer in same if isinstance(layer, nn.Linear)])
    if isinstance(module, nn.Conv2d):
        merged: nn.Module = nn.Conv2d(
            module.in_channels * count,
            module.out_channels * count,
            (module.kernel_size[0], module.kernel_size[1]),
            stride=(module.stride[0], module.stride[1]),
            padding=cast(tuple[int, int], module.padding),
            groups=count,
            bias=module.bias is not None,
        )
    elif isinstance(module, nn.BatchNorm2d):
        merged = nn.BatchNorm2d(module.num_features * count)
    else:
        return None
    merged = merged.to(next(module.parameters()).dtype)
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.copy_(torch.cat([other.get_parameter(name) for other in same]))
    return merged


def summed_loss(logits: Tensor, labels: Tensor, clients: int) -> Tensor:
    """Sum of the clients' mean losses: logits [B, K * classes], labels [B, K]."""
    each = at_least_float32(logits).unflatten(1, (clients, -1)).transpose(1, 2)
    return F.cross_entropy(each, labels, reduction="sum") / labels.shape[0]


def label(clients: int, precision: str, how: str, layout: str) -> str:
    """Name of a case."""
    return f"clients {clients} x b{BATCH} {precision} {how} {layout}"


def cases() -> list[Case]:
    """By number of clients: one after the other and together, each eager and as a graph."""
    hows = [("in turn eager", "channels_last"), ("in turn graph", "channels_last")]
    hows += [("together graph", layout) for layout in LAYOUTS] + [("together eager", "NCHW")]
    plan = [(count, "bf16", *how) for count in COUNTS for how in hows]
    plan += [(10, "tf32", how, "NCHW") for how in ("in turn eager", "in turn graph", "together graph")]
    return [
        Case(
            label(count, precision, how, layout),
            partial(client_steps, clients=count, precision=precision, how=how, layout=layout),
            versus=label(count, precision, "in turn eager", "NCHW" if precision == "tf32" else "channels_last"),
            seconds=5.0,
        )
        for count, precision, how, layout in plan
    ]


def client_steps(bench: Bench, clients: int, precision: str, how: str, layout: str) -> Measured:
    """Milliseconds for one step of every client; rate in client steps per second."""
    if "graph" in how:
        bench.need_cuda("a CUDA graph")
    clients = bench.size(clients, min(clients, 3))
    make = _together if "together" in how else _in_turn
    steps, error = make(bench, clients, precision, layout)
    bench.clear()
    if "graph" in how:
        run, peak = captured(bench, steps)
    else:
        run, peak = partial(_all, steps), bench.peak(partial(_all, steps))
    timing = bench.time(run, seconds=0.8)
    return Measured({"all steps": timing}, error, peak, 1e3 * clients / timing.median, "client steps/s")


def _all(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _alone(bench: Bench, client: int, precision: str, layout: str) -> TrainingStep:
    model = with_layout(network(bench, seed=client).to(bench.device), layout)
    images, labels = batch_of(bench, bench.size(BATCH, 16), seed=client)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    return TrainingStep(bench, model, images, labels, precision, loss=mean_loss)


def _in_turn(bench: Bench, clients: int, precision: str, layout: str) -> tuple[list[TrainingStep], None]:
    """The single step was checked in the section of dense steps."""
    return [_alone(bench, client, precision, layout) for client in range(clients)], None


def _together(bench: Bench, clients: int, precision: str, layout: str) -> tuple[list[TrainingStep], float]:
    alone = [_alone(bench, client, "fp32", "NCHW") for client in range(clients)]
    alone[-1]()
    expected = _classifier_change(alone[-1], alone[-1].model, clients=1)
    images = torch.cat([step.images for step in alone], dim=1).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.stack([step.labels for step in alone], dim=1)
    alone[-1].restore()
    model = with_layout(together([step.model for step in alone]).to(bench.device), layout)
    del alone
    step = TrainingStep(bench, model, images, labels, precision, loss=partial(summed_loss, clients=clients))
    step()
    error = relative_error(_classifier_change(step, model, clients), expected)
    step.restore()
    return [step], checked(error, STEP_LIMITS[precision], "the last client's classifier")


def _classifier_change(step: TrainingStep, model: nn.Module, clients: int) -> Tensor:
    """Change of the last client's classifier weight, float64 on the host."""
    names = [name for name, _ in model.named_parameters()]
    # The classifier is the last module: its weight and bias end the list.
    at = len(names) - 2
    change = step.parameters[at].detach().cpu().double() - step.initial(at)
    return change.reshape(clients, -1)[-1]
