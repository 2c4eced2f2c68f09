"""`memory` of the training holds wherever layers become sparse: on the server, on clients, after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kill_program import METHODS, experiment
from torch import nn

from fedsparse.federated import checkpoint
from fedsparse.federated.loop import Loop
from fedsparse.federated.workers import LocalWorkers
from fedsparse.nn import sparse_layers


def settings(model: nn.Module) -> set[str]:
    return {layer.memory for layer in sparse_layers(model).values()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("memory", ["compact", "fast"])
def test_every_layer_has_it(name: str, memory: str) -> None:
    plain = experiment(METHODS[name])
    compact = replace(plain, training=replace(plain.training, memory=memory))
    loop = Loop(compact)
    loop.open()
    for t in range(2):
        loop.round(t)
    assert isinstance(loop.workers, LocalWorkers)
    tensors, _ = loop.state()
    fresh = Loop(compact)
    checkpoint.restore(fresh.server, tensors)
    for model in (loop.server.model, loop.workers.worker.model, fresh.server.model):
        assert settings(model) == {memory}
