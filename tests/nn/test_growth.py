import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse.nn import add_gradients, collect_growth, prunable, sparse_layers, sparsify, visit_gradients


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


class Tokens(nn.Module):
    """Mean over a sequence, so that a linear layer sees [B, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 6)
        self.outer = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).relu().mean(1))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (2, 5, 6)),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, (1, 3), 1, 0, (1, 2)), nn.Flatten(), nn.Linear(40, 2)), (2, 5, 6)),
        (Tokens, (3, 8)),
    ],
    ids=["stride and padding", "dilation", "sequence"],
)
def test_visited_gradients_are_those_of_the_masked_dense_model_one_layer_at_a_time(make, shape) -> None:
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    sparsify(model, {name: 0.4 for name in prunable(model, last=True)})
    layers = sparse_layers(model)
    for name, layer in layers.items():
        twin.get_submodule(name).weight.data.mul_(layer.topology.mask())
    x, y = torch.randn(5, *shape), torch.randint(0, 2, (5,))
    seen: list[tuple[str, torch.Tensor]] = []
    with visit_gradients(layers, lambda name, gradient: seen.append((name, gradient))):
        with torch.no_grad():
            model(x)
        functional.cross_entropy(model(x), y).backward()
    functional.cross_entropy(twin(x), y).backward()
    assert [name for name, _ in seen] == list(layers)[::-1]
    for name, gradient in seen:
        assert torch.allclose(gradient, twin.get_submodule(name).weight.grad, atol=1e-6)
    functional.cross_entropy(model(x), y).backward()
    assert len(seen) == len(layers), "the hooks are gone"


def test_visiting_keeps_no_gradient_alive() -> None:
    """When a layer is visited, the gradients handed over before it are garbage unless the callback kept them."""
    model = sparsify(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), 0.5)
    alive: list[weakref.ref[torch.Tensor]] = []
    counts = []

    def callback(_: str, gradient: torch.Tensor) -> None:
        counts.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(gradient))

    with visit_gradients(sparse_layers(model), callback):
        model(torch.randn(3, 8)).sum().backward()
    assert counts == [0, 0, 0]


@pytest.mark.parametrize("squared", [False, True])
def test_gradients_add_up_over_passes(squared: bool) -> None:
    """Two passes over a masked model: sums of the dense twin's gradients, or of their squares, by layer or parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2)
    )
    twin = copy.deepcopy(model)
    sparsify(model, {"0": 0.3, "3": 0.3})
    for name, layer in sparse_layers(model).items():
        twin.get_submodule(name).weight.data.mul_(layer.topology.mask())
    expected = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    sums: dict[str, torch.Tensor] = {}
    with add_gradients(model, sums, torch.square if squared else None):
        for _ in range(2):
            x, y = torch.randn(6, 1, 4, 4), torch.randint(0, 2, (6,))
            model.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            twin.zero_grad()
            functional.cross_entropy(twin(x), y).backward()
            for name, p in twin.named_parameters():
                expected[name] += p.grad.square() if squared else p.grad
    held = {name: total.clone() for name, total in sums.items()}
    model(x).sum().backward()
    assert sorted(sums) == ["0", "0.bias", "1.bias", "1.weight", "3", "3.bias", "4.bias", "4.weight"]
    for name, total in sums.items():
        assert torch.allclose(total, expected[f"{name}.weight" if name in ("0", "3") else name], atol=1e-6)
        assert torch.equal(total, held[name]), "the hooks are gone"


class Twice(nn.Module):
    """One layer used on two inputs, of different sizes for a convolution; a third use does not reach the output."""

    def __init__(self, layer: nn.Module, second: int) -> None:
        super().__init__()
        self.layer, self.second = layer, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        return self.layer(x).square().sum() + self.layer(3 * x[..., : self.second]).sum()


@pytest.mark.parametrize(
    ("layer", "shape", "second"),
    [(nn.Conv2d(2, 4, 3), (3, 2, 6, 6), 5), (nn.Linear(6, 5), (3, 6), 6), (nn.Linear(6, 5), (2, 3, 2, 6), 6)],
    ids=["convolution", "linear", "linear on four dimensions"],
)
def test_the_gradient_of_a_layer_used_twice_is_the_sum_over_its_uses(layer, shape, second) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    layer = layer.double()
    model = Twice(copy.deepcopy(layer), second)
    sparsify(model, {"layer": 0.3})
    sparse = sparse_layers(model)["layer"]
    twin = Twice(copy.deepcopy(layer), second)
    twin.layer.weight.data.mul_(sparse.topology.mask())
    x = torch.randn(shape, dtype=torch.float64)
    twin(x).backward()
    expected = twin.layer.weight.grad
    squares: dict[str, torch.Tensor] = {}
    with collect_growth({"layer": sparse}, {"layer": 6}) as found, add_gradients(model, squares, torch.square):
        for _ in range(2):
            model(x).backward()
    inactive = expected.masked_fill(sparse.topology.mask(), 0.0).flatten()
    assert found["layer"].groups.tolist() == sorted(inactive.abs().topk(6).indices.tolist())
    torch.testing.assert_close(found["layer"].gradients, inactive[found["layer"].groups].float())
    torch.testing.assert_close(squares["layer"], 2 * expected.square())
