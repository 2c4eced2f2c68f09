import copy
import gc
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models, ops
from fedsparse.federated.meter import multiply_adds
from fedsparse.nn import Blocked, collect_growth, densify, explain, sparse_layers, sparsify, use_region
from fedsparse.pruning import from_groups

MODELS = ["resnet18", "resnet20", "vgg11", "cnn"]


def build(name: str, norm: str = "batch") -> nn.Module:
    torch.manual_seed(1)
    model = models.build(name, 10, norm=norm, width=1.0 if name == "resnet20" else 0.25)
    # Bias and scale away from 0 and 1, so that a mix-up of channels shows.
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.uniform_(p, 0.5, 1.5)
    return sparsify(model.double(), 0.3)


def train_step(model: nn.Module, x: Tensor, wanted: bool) -> dict[str, Tensor]:
    """Logits, every gradient and every buffer of one step."""
    x = x.clone().requires_grad_()
    with use_region(wanted):
        logits = model(x)
        functional.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    assert type(logits) is Tensor
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point() or "tracked" in name}
    return {"logits": logits.detach(), "x": x.grad, **gradients, **buffers}


def entered(model: nn.Module) -> list[str]:
    """Names of the convolutions whose outputs are Blocked, filled in as the model runs."""
    found: list[str] = []
    for name, layer in sparse_layers(model).items():
        layer.register_forward_hook(lambda _, __, y, name=name: found.append(name) if type(y) is Blocked else None)
    return found


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_without_it(name: str, norm: str, training: bool, batch: int) -> None:
    """Logits, all gradients and the running statistics, in float64."""
    if (batch, training, norm, name) == (1, True, "batch", "vgg11"):
        pytest.skip("batch norm cannot train on one value per channel")
    model = build(name, norm).train(training)
    twin = copy.deepcopy(model)
    found = entered(model)
    x = torch.randn(batch, 3, 32, 32, dtype=torch.float64)
    inside, outside = train_step(model, x, True), train_step(twin, x, False)
    convolutions = [
        n for n, layer in sparse_layers(model).items() if layer.topology.kernel and len(layer.weight_shape) == 4
    ]
    assert found == convolutions
    assert all(not layer.left for layer in sparse_layers(model).values() if hasattr(layer, "left"))
    for key, expected in outside.items():
        scale = max(1e-3, float(expected.double().abs().max()))
        assert float((inside[key].double() - expected.double()).abs().max()) <= 1e-11 * scale, key


def test_float32_and_a_usual_batch() -> None:
    model = build("resnet20").float()
    twin = copy.deepcopy(model)
    x = torch.randn(20, 3, 16, 16)
    inside, outside = train_step(model, x, True), train_step(twin, x, False)
    for key, expected in outside.items():
        torch.testing.assert_close(inside[key], expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max())))


class Odd(nn.Module):
    """What users write: functions, operators in both orders, in place, a dense layer, unknown functions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.dense = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        y = functional.relu(self.norm(self.one(x)), inplace=True)
        z = self.two(y)
        z += y
        z = y + z.relu() * 2 - 1
        z = functional.silu(self.group(z))
        seen = z.mean((2, 3))
        z = self.dense(z) + torch.sort(z, dim=1).values
        z = self.two(z)
        z = 1.5 + torch.cat([z, z[:, 2:4, ::2, ::2].repeat(1, 1, 2, 2)], 1)[:, :8]
        pooled = self.pool(functional.max_pool2d(z, 2))
        z = functional.adaptive_avg_pool2d(functional.dropout(pooled, 0.5, self.training and False), (1, 1))
        assert z.size(0) == len(x)
        assert z.size() == (len(x), 8, 1, 1)
        return {
            "logits": self.last(z.view(z.size(0), -1)),
            "parts": [seen, pooled, z.flatten(1)],
            "blocked": self.one(x),
        }


def test_any_function_works_and_the_way_out_is_recorded() -> None:
    torch.manual_seed(0)
    model = sparsify(Odd().double(), {"one": 0.5, "two": 0.5})
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    results = []
    for wanted in (True, False):
        twin = copy.deepcopy(model)
        with use_region(wanted):
            y = twin(x)
        parts = [y["logits"], *y["parts"], y["blocked"]]
        assert all(type(t) is Tensor for t in parts)
        sum(t.sin().sum() for t in parts).backward()
        results.append([*parts, *(p.grad for p in twin.parameters())])
        if wanted:
            left = twin.one.left | twin.two.left
            assert {"conv2d", "sort"} <= left
            assert not {"relu", "add", "mul", "rsub", "radd", "cat", "max_pool2d"} & left
            assert "conv2d" in explain(twin)
            assert "output in blocks of images" in explain(twin)
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_norm_addition_and_relu_are_one_kernel() -> None:
    """A basic block: two convolutions, two norms; the second with the residual. No relu, no add, no layout change."""
    model = build("resnet18")
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    model(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    counts = {e.key: e.count for e in profile.key_averages()}
    assert counts["fedsparse::blocked_norm"] == 20
    assert counts["fedsparse::blocked_conv2d"] == 20
    assert counts["fedsparse::to_blocked"] == 1
    assert counts["fedsparse::from_blocked"] == 1
    assert "aten::relu" not in counts
    assert "aten::relu_" not in counts


def test_an_operation_in_place_changes_what_the_name_stands_for() -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0": 0.5})
    with use_region(True):
        y = model[0](torch.randn(3, 3, 2, 2))
        expected = y.tensor()
        alias = y
        functional.relu(y, inplace=True)
        assert torch.equal(alias.tensor(), expected.relu())
        y += alias
        assert torch.equal(alias.tensor(), 2 * expected.relu())
        y.mul_(3)
        assert torch.equal(alias.tensor(), 6 * expected.relu())
        assert y.clamp_(max=0.1) is not None
        assert float(alias.tensor().detach().max()) == pytest.approx(0.1)


@pytest.mark.parametrize("images", [1, 4, 7, 8, 16, 17, 100])
def test_small_batches_stay_out(images: int) -> None:
    """At most as many empty lanes as images: 16 lanes from 8 images on."""
    model = sparsify(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0": 0.5})
    found = entered(model)
    model(torch.randn(images, 3, 4, 4))
    assert bool(found) == (images >= 8)


def test_switches() -> None:
    model = build("cnn")
    found = entered(model)
    x = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    with use_region(False):
        model(x)
    with ops.use_backend("dense"):
        model(x)
    with torch.autocast("cpu"):
        model(x)
    assert found == []
    assert explain(model).count("output not in blocks of images (autocast, ") == 3
    model(x)
    assert "not in blocks" not in explain(model)
    assert found == ["0.conv", "2.conv", "4.conv"]
    found.clear()
    assert not any(
        layer.region
        for layer in sparse_layers(sparsify(models.build("cnn", 10), 0.3, region=False)).values()
        if hasattr(layer, "region")
    )
    assert "blocks" not in explain(sparsify(models.build("cnn", 10), 0.3, region=False))
    densify(model)
    assert not model._forward_hooks
    assert type(model(x)) is Tensor


def test_it_survives_copies_and_leaves_no_trace_in_the_state() -> None:
    model = build("cnn")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    twin.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(twin(x), model(x))
    sparsify(twin, {"7": 0.5})
    assert len(twin._forward_hooks) == 1
    assert type(twin(x)) is Tensor


def test_hooks_of_others_work() -> None:
    """Growth reads inputs and output gradients, the meter output shapes; a full hook on a dense layer its gradient."""
    model = build("resnet20")
    layers = sparse_layers(model)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    found = []
    for wanted in (True, False):
        with use_region(wanted), collect_growth(layers, {name: 5 for name in layers}) as growth:
            functional.cross_entropy(model(x), torch.arange(4)).backward()
            found.append((dict(growth), multiply_adds(model.float(), (3, 16, 16))))
            model.double()
    assert found[0][1] == found[1][1]
    for name in layers:
        assert torch.equal(found[0][0][name].groups, found[1][0][name].groups), name
        torch.testing.assert_close(found[0][0][name].gradients, found[1][0][name].gradients, rtol=1e-5, atol=1e-7)


def test_a_hook_on_the_output_may_replace_its_gradient() -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), {"0": 0.5}).double()
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    gradients = []
    for wanted in (True, False):
        handle = model[0].register_forward_hook(lambda _, __, y: y.register_hook(lambda g: 2 * g) and None)
        model.zero_grad()
        with use_region(wanted):
            model(x).sin().sum().backward()
        gradients.append(model[0].values.grad)
        handle.remove()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_one_value_per_channel_cannot_train() -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), {"0": 0.5})
    with use_region(True), pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 1, 1))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_torchs(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(4, momentum=momentum)
    model = sparsify(nn.Sequential(nn.Conv2d(3, 4, 1), norm), {"0": 1.0})
    twin = copy.deepcopy(model)
    for step in range(3):
        x = torch.randn(5 + step, 3, 4, 4)
        for m, wanted in ((model, True), (twin, False)):
            with use_region(wanted):
                m(x)
    assert int(model[1].num_batches_tracked) == 3
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var)


def test_under_the_compiler_the_region_is_off() -> None:
    model = build("cnn").float()
    x = torch.randn(16, 3, 32, 32)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_graph_dies_with_the_output() -> None:
    """No reference cycle: values may change their size before the next garbage collection, and memory comes back."""
    model = build("resnet20").float()
    layers = sparse_layers(model)
    x = torch.randn(16, 3, 16, 16)
    gc.collect()
    gc.disable()
    try:
        with collect_growth(layers, {name: 5 for name in layers}) as growth:
            for _ in range(2):
                model(x).sum().backward()
                layers["0.conv"](x).cumsum(1).sum().backward()
                model.zero_grad()
                layer = layers["0.conv"]
                layer.set_topology(from_groups(growth["0.conv"].groups, layer.weight_shape))
        blocked = [o for o in gc.get_objects() if type(o) is Blocked]
    finally:
        gc.enable()
    assert not blocked


def test_a_look_without_gradients_cuts_no_graph() -> None:
    """A hook that reads a norm's output under no_grad runs the waiting norm, which must still be recorded."""
    model = build("resnet20").float()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, y: watch(y))

    def watch(y: Tensor) -> None:
        with torch.no_grad():
            assert float(y.abs().mean()) >= 0

    model(torch.randn(16, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_norm_called_without_gradients_gets_none() -> None:
    norm = nn.BatchNorm2d(4)
    conv = sparsify(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5)[0]
    with torch.no_grad():
        y = norm(conv(torch.randn(16, 3, 8, 8)))
    assert not torch.relu(y).tensor().requires_grad


def test_writes_and_options_are_those_of_a_tensor() -> None:
    conv = sparsify(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5)[0]
    x = torch.randn(16, 3, 8, 8)
    with use_region(False):
        plain = conv(x).detach()
    with torch.no_grad():
        for change in (lambda y: y.__setitem__((slice(None), slice(0, 2)), 0), lambda y: y[:, 1].shape):
            expected, y = plain.clone(), conv(x)
            change(expected)
            change(y)
            torch.testing.assert_close(y.tensor(), expected)
        torch.testing.assert_close(torch.sub(conv(x), 1, alpha=2), plain - 2)
        torch.testing.assert_close(
            torch.div(conv(x), 0.3, rounding_mode="floor"), torch.div(plain, 0.3, rounding_mode="floor")
        )


def test_a_map_without_pixels_is_refused() -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(3, 16, 3, padding=2)), 0.5)
    for region in (True, False):
        with use_region(region), pytest.raises(RuntimeError, match="at least one pixel"):
            model(torch.zeros(16, 3, 0, 5))
