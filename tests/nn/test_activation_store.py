"""What layers keep for the backward pass: the same outputs and gradients as torch's, fewer bytes."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedsparse import models, ops
from fedsparse.federated.meter import _cpu_meter
from fedsparse.nn import keep_activations, sparsify, standardise
from fedsparse.nn.activation_store import BitReLU, BitReLU6, ByteMaxPool2d, Store, keep_bits, packed, pruned_saves


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """[output, gradient, gradient of the gradient] under fixed gradients."""
    x = x.clone().requires_grad_()
    y = module(x * 1)
    gy = random(*y.shape, seed=1).requires_grad_()
    (gx,) = torch.autograd.grad((y * gy.to(y.dtype)).sum(), x, create_graph=True)
    (ggy,) = torch.autograd.grad(gx.square().sum(), gy)
    return [y.detach(), gx.detach(), ggy]


# module: why
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": lambda: nn.ReLU6(inplace=True),
    "pooling": lambda: nn.MaxPool2d(2),
    "overlapping windows that jut out": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "windows of every setting": lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 1), (2, 1), ceil_mode=True),
    "largest window of a byte": lambda: nn.MaxPool2d(16, padding=8, stride=5),
    "average to one": lambda: nn.AdaptiveAvgPool2d(1),
    "average of unequal windows": lambda: nn.AdaptiveAvgPool2d((4, 3)),
}


@pytest.mark.parametrize("reason", MODULES)
def test_outputs_and_derivatives_are_those_of_torch(reason: str) -> None:
    module = MODULES[reason]()
    lean = keep_bits(nn.Sequential(copy.deepcopy(module)))
    assert type(lean[0]) is not type(module)
    x = 4 * random(2, 3, 11, 9)
    for expected, found in zip(results(module, x), results(lean, x)):
        torch.testing.assert_close(found, expected)


def test_what_keep_bits_leaves_alone() -> None:
    model = nn.Sequential(nn.MaxPool2d(17), nn.MaxPool2d(2, return_indices=True), nn.GELU(), BitReLU())
    before = list(model)
    assert list(keep_bits(model)) == before
    inner = keep_bits(nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU6()), nn.MaxPool2d(16)).eval())
    assert type(inner[0][0]) is BitReLU
    assert inner[0][0].inplace
    assert not inner[0][0].training
    assert type(inner[0][1]) is BitReLU6
    assert type(inner[1]) is ByteMaxPool2d


def test_an_input_is_packed_once_while_somebody_holds_it() -> None:
    x = random(2, 40).float()
    first = packed(x, Store(0.5))
    assert packed(x, Store(0.5)) is first
    assert packed(x, Store(0.25)) is not first
    assert packed(x.clone(), Store(0.5)) is not first
    again = packed(x, Store(0.5))
    x.mul_(-1)
    changed = packed(x, Store(0.5))
    assert changed is not again
    assert torch.equal(changed.unpack(), -again.unpack())


def test_nothing_outlives_the_graph() -> None:
    meter = _cpu_meter()
    x = random(8, 4, 16, 16).float()
    conv = keep_activations(standardise(nn.Sequential(nn.Conv2d(4, 4, 3))), "pruned(0.5)")
    conv(x).sum().backward()
    gc.collect()
    before = meter.fedsparse_meter_live()
    y = conv(x)
    assert meter.fedsparse_meter_live() - before > x.nbytes // 2
    del y
    gc.collect()
    assert meter.fedsparse_meter_live() == before


def test_a_layer_that_keeps_its_input_otherwise_is_refused() -> None:
    x, w = random(2, 8).float(), torch.ones(8, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not keep its input"), pruned_saves(x, Store(0.5)):
        (x + w).sum()


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes alive after a forward pass beyond those before it, measured: all that the backward pass will use."""
    meter = _cpu_meter()
    model.train()
    model(x).sum().backward()
    before = meter.fedsparse_meter_live()
    y = model(x).sum()
    after = meter.fedsparse_meter_live()
    y.backward()
    return after - before


@pytest.mark.parametrize(
    ("name", "size", "limits"),
    [
        ("cnn", 16, (0.35, 0.25)),
        ("resnet20", 16, (0.6, 0.3)),
        ("vgg11", 32, (0.35, 0.25)),
        ("mobilenetv2", 16, (0.3, 0.2)),
    ],
)
def test_saved_bytes_against_the_dense_store_of_the_same_model(
    name: str, size: int, limits: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    dense = models.build(name, 10, image_size=size, width=0.25)
    x = torch.randn(16, 3, size, size)
    found = []
    for level in ("dense", "pruned(0.5)", "pruned(0.2, bf16)"):
        model = keep_activations(sparsify(standardise(copy.deepcopy(dense), gain=1.7139), 0.1), level)
        found.append(saved_bytes(model, x))
    usual, half, fifth = found
    assert half < limits[0] * usual, f"{half} of {usual} bytes"
    assert fifth < limits[1] * usual, f"{fifth} of {usual} bytes"


def test_saved_bytes_to_the_byte() -> None:
    """Two convolutions, 1 x 1, of 8 channels on 16 x 16 maps, one image: 2048 numbers an activation.

    conv - ReLU - conv with keep .25: the first conv keeps of its input 512 values of 4 bytes, 256 bytes of bits and 2
    starts of 8; the ReLU 256 bytes of bits; the second of the ReLU's output as the first; each keeps its 64 values and
    index arrays, which are alive before. The dense store keeps the input, alive before, and the ReLU's output once.
    """
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False))
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    packing = 512 * 4 + 256 + 16
    for level, expected in (("pruned(0.25)", 2 * packing + 256), ("pruned(0.25, bf16)", 2 * (packing - 1024) + 256)):
        model = keep_activations(sparsify(copy.deepcopy(dense), 1.0), level)
        assert saved_bytes(model, x) == expected + 4, "4: the sum itself"
    assert saved_bytes(sparsify(copy.deepcopy(dense), 1.0), x) == 2048 * 4 + 4


def test_two_convolutions_share_what_they_keep_of_one_input() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 2, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            return self.first(y).sum() + self.second(y).sum()

    model = keep_activations(standardise(Two()), "pruned(0.5)")
    x = torch.randn(4, 8, 16, 16)
    both = saved_bytes(model, x)
    one = ops.pack_activation(x, 0.5).nbytes
    assert one <= both < 1.1 * one
