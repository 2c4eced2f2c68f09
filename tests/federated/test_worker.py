import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Method, Training, exchange
from fedsparse.federated.worker import Worker
from fedsparse.methods import FedAvg
from fedsparse.nn import prunable, sparse_layers, sparsify
from fedsparse.pruning import active_groups, from_groups
from fedsparse.wire import Bitmap, Values, encode


class Wandering(Method):
    """Every client moves each layer's last active weight to its first inactive place."""

    def epoch_end(self, client: Client, epoch: int) -> None:
        for layer in sparse_layers(client.model).values():
            inactive = (~layer.topology.mask().flatten()).nonzero().flatten()[:1]
            groups = torch.cat([active_groups(layer.topology)[:-1], inactive])
            client.change_mask(layer, from_groups(groups, layer.weight_shape))


def worker(method: Method) -> Worker:
    torch.manual_seed(0)
    images = torch.randn(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("toy", images, torch.arange(12) % 2, 2, (0.0,), (1.0,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2))
    names = list(prunable(model))
    twin = sparsify(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2)), 0.5)
    new = Worker(model, method, names, data, [np.arange(4), np.arange(4, 12)], Training(epochs=2, batch_size=4), 0)
    new.receive_mask(encode("mask", 1, -1, {"mask": Bitmap(exchange.mask(twin))}))
    weights = {"parameters": Values(exchange.parameters(twin)), "buffers": Values(exchange.buffers(twin))}
    new.receive_weights(encode("weights", 1, -1, weights))
    return new


@pytest.mark.parametrize("method", [Method(), Wandering()])
def test_a_clients_mask_is_its_own(method: Method) -> None:
    """Client 1 sends the same bytes whether or not client 0 ran before it on the same model."""
    alone, both = worker(method), worker(method)
    expected = alone.train(1)
    common = both.common[0][1].flat().clone()
    both.train(0)
    changed = sparse_layers(both.model)["1"].topology.flat()
    assert torch.equal(changed, common) == (not isinstance(method, Wandering))
    assert both.train(1) == expected


def worker_with(model: nn.Module) -> Worker:
    images = torch.randn(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("toy", images, torch.arange(12) % 2, 2, (0.0,), (1.0,))
    parts = [np.arange(6), np.arange(6, 12)]
    worker = Worker(model, FedAvg(), [], data, parts, Training(epochs=1, batch_size=3), 0)
    sections = {"parameters": Values(exchange.parameters(model)), "buffers": Values(exchange.buffers(model))}
    worker.receive_weights(encode("weights", 0, -1, sections))
    return worker


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(6, momentum=None)])
def test_a_report_does_not_depend_on_who_worked_before(layer: nn.Module) -> None:
    """Dropout draws from torch's own generator, and a cumulative norm counts batches: both start anew for each client."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), layer, nn.Linear(6, 2))
    first = worker_with(copy.deepcopy(model)).train(1)
    second = worker_with(copy.deepcopy(model))
    second.train(0)
    assert second.train(1) == first
