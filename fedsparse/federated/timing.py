"""What a round costs a client, as seconds an active weight and seconds that no mask saves; measured on this device."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsparse.federated.seeds import torch_generator
from fedsparse.nn import SparseLayer, sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.topology import Topology

if TYPE_CHECKING:
    from fedsparse.federated.server import Server

Call = tuple[tuple[int, ...], bool]
BOTH_WAYS = 8
"""Bytes of a float32 that travels down and up."""


def seconds_of(server: Server, weight: float | Mapping[str, float] | None, other: float, link_rate: float) -> Tensor:
    """Seconds an active weight of each sparse layer, then the other seconds of a round: float64 [layers + 1].

    As given (`weight` for all layers, or by layer name), or by `round_seconds` where `weight` is None.
    """
    layers = server.layers
    if weight is None:
        weight, other = round_seconds(server, link_rate)
    if not isinstance(weight, Mapping):
        weight = dict.fromkeys(layers, weight)
    if weight.keys() != layers.keys():
        raise ValueError(
            f"method.weight_seconds names {', '.join(weight)}, but the pruned layers are {', '.join(layers)}"
        )
    return torch.tensor([*(weight[name] for name in layers), other], dtype=torch.float64)


def round_seconds(server: Server, link_rate: float) -> tuple[dict[str, float], float]:
    """(seconds an active weight by sparse layer, other seconds) of a client's round: compute and communication.

    Compute is what `update_seconds` measures on the server's device, times the local updates of a round (the mean over
    clients); communication the bytes both ways over `link_rate` bytes a second. So a weight never costs 0.
    """
    training, link = server.training, BOTH_WAYS / link_rate
    batches = sum(-(-samples // training.batch_size) for samples in server.samples)
    updates = training.epochs * batches / len(server.samples)
    device = next(server.model.parameters()).device
    x = torch.ones(training.batch_size, *server.input_shape, dtype=server.input_dtype, device=device)
    slopes, other = update_seconds(server.model, x)
    dense = server.parameter_count - sum(layer.topology.nnz for layer in server.layers.values())
    return {name: slope * updates + link for name, slope in slopes.items()}, other * updates + dense * link


def update_seconds(
    model: nn.Module, x: Tensor, densities: tuple[float, float] = (0.1, 0.5), warmup: int = 2, repeats: int = 5
) -> tuple[dict[str, float], float]:
    """(seconds an active weight by sparse layer, other seconds) of one forward and backward pass on the batch x.

    Each layer's own kernels run alone, on its input shape in the model, under random masks of two densities: the slope
    between the two medians of `repeats` runs, after `warmup`, is the layer's seconds a weight (0 where noise makes it
    negative). The other seconds are those of the whole model at the lower density less what the slopes explain of it:
    norms, activations, dense layers and the fixed part of the kernels. The model is not changed.
    """
    low, high = densities
    model = copy.deepcopy(model).train()
    layers = sparse_layers(model)
    for layer in layers.values():
        layer.set_topology(_random(layer, low))
    calls = _calls(model, layers, x)
    whole = _median(lambda: _pass(model, x), x.device, warmup, repeats)
    slopes = {}
    for name, layer in layers.items():
        medians, counts = [], []
        for density in (low, high):
            layer.set_topology(_random(layer, density))
            counts.append(layer.topology.nnz)
            medians.append(sum(_alone(layer, call, warmup, repeats) for call in calls[name]))
        slopes[name] = max(0.0, medians[1] - medians[0]) / max(1, counts[1] - counts[0])
        whole -= slopes[name] * counts[0]
    return slopes, max(0.0, whole)


def _random(layer: SparseLayer, density: float) -> Topology:
    groups = layer.topology.numel // layer.granularity
    order = torch.randperm(groups, generator=torch_generator(0, "timing"))
    return from_groups(order[: max(1, round(density * groups))], layer.weight_shape, layer.granularity)


def _calls(model: nn.Module, layers: dict[str, SparseLayer], x: Tensor) -> dict[str, list[Call]]:
    """Of each call of each layer in a pass: the shape of its input, and whether that needs a gradient."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: calls[name].append((tuple(inputs[0].shape), inputs[0].requires_grad))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    model(x)
    for handle in handles:
        handle.remove()
    return calls


def _alone(layer: SparseLayer, call: Call, warmup: int, repeats: int) -> float:
    shape, needs_gradient = call
    x = torch.ones(shape, dtype=layer.values.dtype, device=layer.values.device, requires_grad=needs_gradient)
    return _median(lambda: _pass(layer, x), x.device, warmup, repeats)


def _pass(module: nn.Module, x: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    y = module(x)
    y.backward(torch.ones_like(y))


def _median(run: Callable[[], None], device: torch.device, warmup: int, repeats: int) -> float:
    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(warmup):
        timed()
    return statistics.median(timed() for _ in range(repeats))
