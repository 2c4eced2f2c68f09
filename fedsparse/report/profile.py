"""What a training step of a configuration takes and keeps, beside the same step dense and under masks.

Three models train on the same batch of client 0, one after the other, with the engine's own step and optimizer:
"dense" (torch's model), "masked dense" (the same, weights and gradients multiplied by float32 masks: how masks are
commonly simulated), and the method's own (sparse storage, under the method's first mask). Every byte is read from a
counter in the allocator (on a GPU torch's own), kernels' scratch included; nothing is computed from shapes but the
split of what is held into its kinds. `adjustment` has what a round takes in which the method adjusts its masks.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.federated import Experiment
from fedsparse.federated.client import Client, iterate
from fedsparse.federated.loop import Loop
from fedsparse.federated.meter import Counter
from fedsparse.federated.method import Method
from fedsparse.nn import SparseLayer
from fedsparse.nn.walk import buffers_of, parameters_of
from fedsparse.report.held import leaves
from fedsparse.report.step_recorder import LayerCost, Moment, StepRecorder


@dataclass(frozen=True)
class StepProfile:
    """One model's step. Sizes in bytes, times in seconds.

    held: alive between steps (model, masks, optimizer state), measured. weights, indices (norm statistics too), masks,
    optimizer, gradients: those tensors' own sizes. kept: what the forward pass (of a minibatch in pieces: of the first)
    left for the backward pass; peak: the most alive during a step, `held` included, and seconds, the median of a step:
    both unwatched. active: weights by layer; layers, moments, marks: see StepRecorder; the layers' times are medians of
    watched steps, their bytes add up to the step's.
    """

    name: str
    held: int
    weights: int
    indices: int
    masks: int
    optimizer: int
    gradients: int
    kept: int
    peak: int
    seconds: float
    active: dict[str, tuple[int, int]]
    layers: dict[str, LayerCost]
    moments: list[Moment]
    marks: dict[str, float]


class MaskedDense(Method):
    """Dense training under masks: weights and gradients are multiplied by masks, by name of the parameter."""

    masks: dict[str, Tensor]

    def __init__(self, masks: dict[str, Tensor]) -> None:
        object.__setattr__(self, "masks", masks)  # a method is frozen

    def begin(self, client: Client) -> None:
        """Multiply the weights."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                client.model.get_parameter(name).mul_(mask)

    def step(self, client: Client) -> None:
        """Multiply the gradients, then step."""
        for name, mask in self.masks.items():
            gradient = client.model.get_parameter(name).grad
            if gradient is not None:
                gradient.mul_(mask)
        super().step(client)


def profiles(experiment: Experiment, opened: Loop, steps: int = 5) -> list[StepProfile]:
    """Profiles of a step: dense, masked dense (where the method has a mask), and the method's own.

    opened: the experiment's loop, which has its first masks. steps: how many are timed, and as many watched.
    """
    model, method = opened.server.model, experiment.method
    masks = {
        f"{name}.weight": layer.topology.mask().float()
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }
    dense = experiment.model
    found = [_profile("dense", experiment, Method(), lambda: _own_copy(dense), {}, steps)]
    if masks:
        found.append(_profile("masked dense", experiment, MaskedDense(masks), lambda: _own_copy(dense), masks, steps))
    found.append(_profile(method.name, experiment, method, lambda: _own_copy(model), {}, steps))
    return found


def _profile(
    name: str,
    experiment: Experiment,
    method: Method,
    build: Callable[[], nn.Module],
    masks: dict[str, Tensor],
    steps: int,
) -> StepProfile:
    index = np.asarray(experiment.parts[0])
    x, y = experiment.train.batch(index[: experiment.training.batch_size])
    gc.collect()
    counter = Counter(parameters_of(experiment.model)[0].device)
    x, y = x.to(counter.device), y.to(counter.device)
    before = counter.live()
    # The rivals keep what torch keeps, of whole minibatches, however the run saves memory.
    plain = replace(experiment.training, activations="dense", pieces=1)
    training = experiment.training if method is experiment.method else plain
    client = Client(0, 0, experiment.seed, build(), experiment.train, index, training)
    client.model.train()
    with client.contexts:
        client.keep_activations(experiment.method)
        method.begin(client)
        iterate(client, method, x, y)  # makes the optimizer's state and whatever else is made once
        client.drop_gradients()
        counter.reset()
        times, between = [], counter.live()
        for _ in range(steps):
            start = counter.now()
            iterate(client, method, x, y)
            times.append(counter.now() - start)
            client.drop_gradients()
        above = counter.peak() - between
        recorders = [_watched(client, method, x, y, counter) for _ in range(steps)]
        held = counter.live() - before + _bytes(masks.values())
    last = recorders[-1]
    for parameter, mask in masks.items():
        last.layers[parameter.removesuffix(".weight")].held["masks"] = mask.nbytes
    shift = held - last.moments[0].live
    moments = [Moment(m.seconds, m.live + shift, m.peak + shift) for m in last.moments]
    parameters, buffers = parameters_of(client.model), buffers_of(client.model)
    state = [entry for held_of in client.optimizer.state.values() for entry in held_of.values()]
    return StepProfile(
        name,
        held,
        _bytes(parameters),
        _bytes(buffers),
        _bytes(masks.values()),
        _bytes([entry for entry in state if isinstance(entry, Tensor)]),
        sum(cost.held.get("gradients", 0) for cost in last.layers.values()),
        last.kept,
        held + above,
        statistics.median(times),
        {name: _active(layer) for name, layer in leaves(client.model)},
        {name: _median(cost, [r.layers[name] for r in recorders]) for name, cost in last.layers.items()},
        moments,
        last.marks,
    )


def _own_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing, index arrays neither, so that all of it is counted."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        module._buffers.update({name: b if b is None else b.clone() for name, b in module._buffers.items()})
    return copied


def _watched(client: Client, method: Method, x: Tensor, y: Tensor, counter: Counter) -> StepRecorder:
    for parameter in parameters_of(client.model):
        parameter.grad = None
    client.batch = None
    recorder = StepRecorder(method, counter)
    with recorder.watching(client.model):
        iterate(client, recorder, x, y)  # type: ignore[arg-type]
        for parameter in parameters_of(client.model):
            parameter.grad = None
    return recorder


def _active(layer: nn.Module) -> tuple[int, int]:
    """(active weights, weights that a dense layer has), biases included."""
    own = sum(p.numel() for p in layer.parameters(recurse=False))
    if isinstance(layer, SparseLayer):
        return own, own - layer.topology.nnz + torch.Size(layer.weight_shape).numel()
    return own, own


def _median(cost: LayerCost, all: list[LayerCost]) -> LayerCost:
    forward, backward = (statistics.median(times) for times in zip(*((c.forward, c.backward) for c in all)))
    return LayerCost(cost.held, cost.kept, forward, backward)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
