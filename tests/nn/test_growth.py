import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.nn import collect_growth, sparse_layers, sparsify


def test_the_largest_inactive_gradients_are_those_of_the_masked_dense_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    twin = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    twin.load_state_dict(model.state_dict())
    sparsify(model, 0.3)
    layers = sparse_layers(model)
    for name, layer in layers.items():
        twin.get_submodule(name).weight.data.mul_(layer.topology.mask())
    x, y = torch.randn(6, 1, 4, 4), torch.randint(0, 2, (6,))
    with collect_growth(layers, {"0": 5, "3": 7}) as found:
        functional.cross_entropy(model(x), y).backward()
    functional.cross_entropy(twin(x), y).backward()
    for name, count in {"0": 5, "3": 7}.items():
        g = twin.get_submodule(name).weight.grad.flatten()
        inactive = g.masked_fill(layers[name].topology.mask().flatten(), 0.0)
        assert set(found[name].groups.tolist()) == set(inactive.abs().topk(count).indices.tolist())
        assert torch.allclose(found[name].gradients, g[found[name].groups], atol=1e-6)
        assert torch.equal(found[name].groups, found[name].groups.sort().values)


def test_hooks_are_gone_afterwards_and_dense_layers_refused() -> None:
    model = sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), 0.5)
    with collect_growth(sparse_layers(model), {"0": 2}) as found:
        pass
    model(torch.ones(2, 4)).sum().backward()
    assert found == {}
    with pytest.raises(ValueError, match="'1' is none"), collect_growth(sparse_layers(model), {"1": 1}):
        pass
