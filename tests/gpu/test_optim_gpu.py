"""SGD and Adam on the device, where torch's fused kernel steps the active weights of all layers at once."""

import copy
from typing import Any

import pytest
import torch
from sparse_problems import topology
from torch import nn

from fedsparse.federated import Training
from fedsparse.nn import SparseLinear, sparse_layers
from fedsparse.optim import SGD, Adam


def model() -> nn.Sequential:
    """Two layers, 1100 and 100 or so of their weights active."""
    torch.manual_seed(0)
    made = []
    for shape in ((100, 37), (37, 9)):
        t = topology((shape[1], shape[0]), 0.3)
        made.append(SparseLinear(t, torch.randn(t.nnz), torch.randn(shape[1])))
    return nn.Sequential(*made)


def trained(net: nn.Sequential, optimizer: SGD | Adam) -> dict[str, Any]:
    """Weights and state after three steps, a change of all masks, and three more."""
    parameters = list(net.parameters())
    for step in range(6):
        if step == 3:
            for k, layer in enumerate(sparse_layers(net).values()):
                other = topology(layer.topology.shape, 0.2, seed=9 + k).to(layer.values.device)
                optimizer.follow(layer.values, layer.set_topology(other))
        for k, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + k)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        optimizer.descend()
    moved = {f"{k}": p.detach().cpu() for k, p in enumerate(parameters)}
    for k, parameter in enumerate(parameters):
        moved |= {f"{k} {name}": s.cpu() for name, s in optimizer.state[parameter].items() if s is not None}
    return moved


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_as_on_the_cpu(kind: str) -> None:
    here, training = model(), Training(lr=0.1, momentum=0.9, weight_decay=1e-3, optimizer=kind)
    there = copy.deepcopy(here).cuda()
    optimizers = [training.make_optimizer(list(net.parameters()), 0) for net in (here, there)]
    assert optimizers[1].defaults["fused"] is True
    expected, found = (trained(net, optimizer) for net, optimizer in zip((here, there), optimizers))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
