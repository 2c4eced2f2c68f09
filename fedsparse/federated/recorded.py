"""A local training step recorded once as a CUDA graph and then replayed: one launch instead of hundreds.

For methods that leave local training as FedAvg has it (`cohort.admits`), and full minibatches that go through the model
in one piece; smaller last ones run as ever. A recording holds the addresses of weights, statistics, index arrays and
optimizer state and the learning rate as a number, so that it serves clients and rounds for as long as those stay: a
change of the mask or of the learning rate makes a new one. The first steps are not lost: they run as ever, in a stream
of their own, which is the warm-up that CUDA asks for, and recording runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsparse.federated.client import Client, iterate
from fedsparse.federated.method import Method
from fedsparse.nn import SparseLayer

WARM = 2
Recorder = Callable[[Callable[[], float | Tensor]], tuple[Callable[[], None], Tensor]]
"""From a step that returns its loss to a function that runs the step once more, and where the loss then stands."""


class Recording(NamedTuple):
    """inputs: (x, y), read by the recorded step; replay runs it; loss, a scalar tensor, is that of the last replay."""

    inputs: tuple[Tensor, Tensor]
    replay: Callable[[], None]
    loss: Tensor


def cuda_graph(run: Callable[[], float | Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The step as a CUDA graph; RuntimeError where something in it makes the host wait for the GPU."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            loss = run()
    except RuntimeError as error:
        raise RuntimeError(f'the step cannot be recorded; set train.cuda_graph = "off": {error}') from error
    assert isinstance(loss, Tensor)
    return graph.replay, loss


class RecordedSteps:
    """Recordings of one worker's model, by the shape of the minibatch."""

    def __init__(self, record: Recorder = cuda_graph) -> None:
        self._record = record
        self._recordings: dict[tuple[object, ...], Recording] = {}
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._setting: tuple[object, ...] = ()
        self._indices: list[Tensor] = []
        self._state: dict[nn.Parameter, dict[str, object]] = {}
        self._anchor: dict[nn.Parameter, Tensor] = {}

    def begin(self, client: Client) -> None:
        """Make what is recorded ready for a client whose training begins, or forget it where it no longer fits."""
        tensors = client.tensors
        setting = (
            client.optimizer.param_groups[0]["lr"],
            client.training.proximal,
            *(t.data_ptr() for t in (*tensors.parameters, *tensors.buffers)),
        )
        indices = [module.topology.cols for module in tensors.modules if isinstance(module, SparseLayer)]
        # Index arrays are held, so that no other can have their address.
        same = len(indices) == len(self._indices) and all(a is b for a, b in zip(indices, self._indices))
        if setting != self._setting or not same:
            self._recordings.clear()
            self._seen.clear()
            self._state, self._anchor = {}, {}
            self._setting, self._indices = setting, indices
            return
        for parameter, state in self._state.items():
            for entry in state.values():
                if isinstance(entry, Tensor):
                    entry.zero_()
            client.optimizer.state[parameter] = dict(state)
        for parameter, start in self._anchor.items():
            start.copy_(client.anchor[parameter])
        client.anchor = self._anchor or client.anchor

    def step(self, client: Client, method: Method, x: Tensor, y: Tensor) -> float | Tensor:
        """One local iteration on the minibatch (x, y); its loss."""
        if len(y) != client.training.batch_size or client.training.pieces > 1:
            return iterate(client, method, x, y)[1]
        key = (x.shape, x.dtype, y.shape, y.dtype)
        if key not in self._recordings:
            if self._seen[key] < WARM:
                self._seen[key] += 1
                return _in_own_stream(client, method, x, y)
            self._recordings[key] = self._recorded(client, method, x, y)
        recording = self._recordings[key]
        for place, tensor in zip(recording.inputs, (x, y)):
            place.copy_(tensor)
        recording.replay()
        client.batch = x, y
        client.iteration += 1
        return recording.loss.clone()

    def _recorded(self, client: Client, method: Method, x: Tensor, y: Tensor) -> Recording:
        if not self._state:
            state = client.optimizer.state
            self._state = {parameter: dict(state[parameter]) for parameter in client.tensors.parameters}
            self._anchor = client.anchor
        inputs = x.clone(), y.clone()

        def run() -> float | Tensor:
            before = client.iteration, client.batch
            _, loss = iterate(client, method, *inputs)
            client.iteration, client.batch = before
            return loss

        client.drop_gradients()
        return Recording(inputs, *self._record(run))


def _in_own_stream(client: Client, method: Method, x: Tensor, y: Tensor) -> float | Tensor:
    if not x.is_cuda:
        return iterate(client, method, x, y)[1]
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        _, loss = iterate(client, method, x, y)
    here.wait_stream(side)
    return loss
