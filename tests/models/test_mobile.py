"""ShuffleNetV2 and MobileNetV2: structure, and that a sparse one equals its masked dense twin."""

import copy

import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.models.shufflenet import Shuffle
from fedsparse.nn import sparse_layers, sparsify

MOBILE = ["mobilenetv2", "shufflenetv2"]


def test_shuffle_interleaves_the_halves() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1).expand(2, 6, 2, 3)
    assert Shuffle()(x)[1, :, 1, 2].tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("shufflenetv2", [32] + [16] * 4 + [8] * 8 + [4] * 5, [24] + [116] * 4 + [232] * 8 + [464] * 4 + [1024]),
        (
            "mobilenetv2",
            [32] * 4 + [16] * 3 + [8] * 7 + [4] * 5,
            [32, 16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320, 1280],
        ),
    ],
)
def test_stages(name: str, sides: list[int], channels: list[int]) -> None:
    model = models.build(name, 10).eval()
    assert isinstance(model, nn.Sequential)
    x = torch.randn(1, 3, 32, 32)
    found = []
    for module in model[:-3]:
        x = module(x)
        found.append((x.shape[1], x.shape[2]))
    assert found == list(zip(channels, sides))


@pytest.mark.parametrize("name", MOBILE)
def test_depthwise_convolutions_stay_dense(name: str) -> None:
    model = sparsify(models.build(name, 10, width=0.25), 0.3)
    dense = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert dense
    assert all(module.groups == module.in_channels for module in dense)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 1
    assert len(sparse_layers(model)) > len(dense)


@pytest.mark.parametrize("name", MOBILE)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_sparse_step_equals_that_of_the_masked_dense_twin(name: str, norm: str) -> None:
    """Outputs and gradients before, weights after one step of SGD, in float64, pruned weights held at zero."""
    torch.manual_seed(0)
    dense = models.build(name, 5, image_size=8, norm=norm, width=0.25).double()
    sparse = sparsify(copy.deepcopy(dense), 0.3)
    masks = {layer: module.topology.mask() for layer, module in sparse_layers(sparse).items()}
    with torch.no_grad():
        for layer, mask in masks.items():
            dense.get_parameter(f"{layer}.weight").mul_(mask)
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5
    outputs = []
    for model in (dense, sparse):
        outputs.append(model(x))
        nn.functional.cross_entropy(outputs[-1], y).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    for layer, module in sparse_layers(sparse).items():
        twin = dense.get_parameter(f"{layer}.weight").detach() * masks[layer]
        torch.testing.assert_close(module.dense_weight(), twin, rtol=1e-8, atol=1e-9)
        assert module.values.grad is not None
        assert module.values.grad.any()
    for key, buffer in sparse.named_buffers():
        if "running" in key:
            torch.testing.assert_close(buffer, dense.get_buffer(key), rtol=1e-9, atol=1e-9)
