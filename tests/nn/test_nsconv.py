"""NSConv: the formula by hand and against a loop; gradients from the pruned input; conversion of models."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models, ops
from fedsparse.nn import collect_growth, densify, keep_activations, sparse_layers, sparsify, standardise
from fedsparse.nn.level import Level
from fedsparse.nn.nsconv import LEAST, NSConv2d, NSSparseConv2d, PrunedConv2d
from fedsparse.nn.scaled_pruning import conv_norm_pairs
from fedsparse.pruning import from_groups
from fedsparse.topology import Topology


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_full_mask_is_the_dense_layer() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    layer = NSConv2d(conv, double(4), gain=1.5)
    sparse = NSSparseConv2d.from_dense(layer, Topology.from_mask(torch.ones(4, 3, 3, 3, dtype=torch.bool)))
    x, gy = double(2, 3, 8, 8).requires_grad_(), double(2, 4, 4, 4, seed=1)
    layer(x).backward(gy)
    dense_gx, x.grad = x.grad, None
    sparse(x).backward(gy)
    torch.testing.assert_close(sparse(x), layer(x))
    torch.testing.assert_close(x.grad, dense_gx)
    torch.testing.assert_close(sparse.values.grad, layer.weight.grad.flatten())
    torch.testing.assert_close(sparse.gain.grad, layer.gain.grad)
    torch.testing.assert_close(sparse.bias.grad, layer.bias.grad)


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
@pytest.mark.parametrize("norm", [True, False])
def test_forward_is_exact_and_the_weight_gradient_sees_the_pruned_input(norm: bool, backend: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    dense = NSConv2d(conv, double(6)) if norm else PrunedConv2d(conv)
    mask = torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    layer = dense.sparse_class.from_dense(dense, Topology.from_mask(mask))
    layer.level = Level("pruned", 0.25)
    x, gy = double(3, 4, 7, 7).requires_grad_(), double(3, 6, 7, 7, seed=1)
    with ops.use_backend(backend):
        y = layer(x)
        y.backward(gy)
    torch.testing.assert_close(y, functional.conv2d(x, layer.dense_weight(), layer.bias, padding=1))

    order = x.detach().flatten(1).abs().sort(descending=True).indices[:, :49]
    pruned = torch.zeros(3, 196, dtype=torch.float64).scatter(1, order, x.detach().flatten(1).gather(1, order))
    pruned = pruned.reshape(x.shape)
    weight = layer.dense_weight().requires_grad_()
    (gw,) = torch.autograd.grad(functional.conv2d(pruned, weight, padding=1), weight, gy)
    (gx,) = torch.autograd.grad(functional.conv2d(x, weight.detach(), padding=1), x, gy)
    values = layer.values.detach().clone().requires_grad_()
    used = ops.standardise(values, layer.gain, layer.topology.indptr, LEAST) if norm else values
    (expected,) = torch.autograd.grad(used, values, layer.topology.pack(gw))
    torch.testing.assert_close(layer.values.grad, expected)
    torch.testing.assert_close(x.grad, gx)
    torch.testing.assert_close(layer.bias.grad, gy.sum((0, 2, 3)))


def test_a_store_of_everything_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = models.build("cnn", 10, image_size=16, width=0.25)
    x, grads = torch.randn(4, 3, 16, 16), []
    for level in ("dense", "pruned(1)"):
        copied = keep_activations(sparsify(standardise(copy.deepcopy(model)), 0.3), level)
        copied(x).square().sum().backward()
        grads.append({name: p.grad for name, p in copied.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("level", ["dense", "pruned(0.2)", "pruned(0.2, bf16)"])
def test_a_minibatch_in_pieces_has_the_gradients_of_the_whole(level: str) -> None:
    """Residual blocks of NSConv, 40 images as 20 and 20 and as 10 four times: what is kept of an image is its own."""
    torch.manual_seed(0)
    model = sparsify(standardise(models.build("resnet20", 10, image_size=16, width=0.5)), 0.3)
    keep_activations(model, level)
    x, target, grads = torch.randn(40, 3, 16, 16), torch.arange(40) % 10, []
    for pieces in (1, 2, 4):
        model.zero_grad()
        for part, wanted in zip(x.chunk(pieces), target.chunk(pieces)):
            (functional.cross_entropy(model(part), wanted) / pieces).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for others in grads[1:]:
        for name, gradient in grads[0].items():
            assert float((others[name] - gradient).norm()) <= 2e-5 * float(gradient.norm()) + 1e-7, name


def test_growth_is_collected_from_the_pruned_input() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    model = keep_activations(sparsify(standardise(nn.Sequential(conv)), 0.3), "pruned(0.2)")
    x = torch.randn(3, 4, 7, 7)
    with collect_growth(sparse_layers(model), {"0": 10}) as found:
        model(x).square().sum().backward()
    y = model(x).detach()
    expected = ops.grow_scores(ops.pack_activation(x, 0.2).unpack(), 2 * y, model[0].topology, 10, padding=1)
    assert torch.equal(found["0"].groups, expected[0])
    torch.testing.assert_close(found["0"].gradients, expected[1])


@pytest.mark.parametrize("granularity", [1, 4])
def test_a_mask_change_goes_on_with_the_other_weights(granularity: int) -> None:
    torch.manual_seed(0)
    model = standardise(nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8)))
    keep_activations(sparsify(model, 0.5, granularity=granularity), "pruned(0.5)")
    layer = model[0]
    assert isinstance(layer, NSSparseConv2d)
    layer.set_topology(from_groups(torch.arange(8), (8, 2, 3, 3), granularity))
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    assert layer.values.grad.shape == layer.values.shape == (8 * granularity,)
    assert bool(layer.values.grad.isfinite().all())


class Residual(nn.Module):
    """Registered in another order than used; one convolution's output goes to two places, one norm is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.after_sum, self.twice = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.alone, self.forked = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.grouped = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.grouped_norm = nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.alone(x))
        z = self.forked(y)
        z = self.after_sum(z) + z
        return self.twice(self.twice(self.grouped_norm(self.grouped(z))))


def test_pairs_follow_the_flow_of_data() -> None:
    assert conv_norm_pairs(Residual()) == {"alone": "norm", "grouped": "grouped_norm"}
    model = keep_activations(standardise(Residual()), "pruned(0.5)")
    assert isinstance(model.alone, NSConv2d)
    assert isinstance(model.grouped, NSConv2d)
    assert type(model.forked) is PrunedConv2d
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(model.after_sum, nn.BatchNorm2d)
    model(torch.randn(4, 3, 5, 5)).sum().backward()
    assert model.grouped.weight.grad is not None


def test_the_shift_and_the_gain_start_as_told() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    nn.init.constant_(model[1].bias, 0.25)
    layer = standardise(model, gain=1.5)[0]
    assert layer.bias.tolist() == [0.25] * 3
    assert layer.gain.tolist() == [1.5] * 3
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias", "gain"}


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="cannot be found in Branching"):
        standardise(Branching())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    "name", ["cnn", "cnn-fedavg", "resnet18", "resnet20", "vgg11", "mobilenetv2", "shufflenetv2", "mlp"]
)
def test_every_model_trains_is_made_sparse_and_dense_again(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = standardise(models.build(name, 4, image_size=32, norm=norm, width=0.25), gain=1.7139)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    keep_activations(sparsify(model, 0.3), "pruned(0.5)")
    assert not any(type(m) in (nn.Conv2d, nn.ReLU, nn.MaxPool2d) for m in model.modules())
    assert all(m.level.share == 0.5 for m in model.modules() if hasattr(m, "level"))
    x = torch.randn(2, 3, 32, 32)
    functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model, x = model.eval().double(), x.double()
    y = model(x)
    assert not sparse_layers(densify(copy.deepcopy(model)))
    torch.testing.assert_close(densify(copy.deepcopy(model))(x), y)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), y)
