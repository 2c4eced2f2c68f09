"""Sparse models under torch.autocast: as dense models with the same masked weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn import keep_activations, sparse_layers, sparsify
from fedsparse.topology import Topology


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def masks(of: nn.Module, granularity: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name in ("0", "3", "6"):
        shape = of.get_submodule(name).weight.shape
        groups = torch.rand((shape[0] // granularity, *shape[1:]), generator=generator) < 0.3
        found[name] = groups.repeat_interleave(granularity, 0)
    return found


@pytest.mark.parametrize("granularity", [1, 16])
@pytest.mark.parametrize("backend", [None, "dense"])
def test_training_step_as_the_masked_dense_model(backend: str | None, granularity: int) -> None:
    """Both round weights and activations to bfloat16 alike, so that only the order of sums differs."""
    dense = model()
    chosen = masks(dense, granularity)
    with torch.no_grad():
        for name, mask in chosen.items():
            dense.get_submodule(name).weight.mul_(mask)
    sparse = sparsify(copy.deepcopy(dense), masks=chosen, granularity=granularity)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10

    def step(of: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = of(x)
            loss = F.cross_entropy(out.float(), y)
        loss.backward()
        return out

    expected = step(dense)
    if backend is None:
        out = step(sparse)
    else:
        with ops.use_backend(backend):
            out = step(sparse)
    assert out.dtype == expected.dtype == torch.bfloat16
    assert (out - expected).norm() / expected.norm() < 0.01
    for name, layer in sparse_layers(sparse).items():
        assert layer.values.dtype == layer.values.grad.dtype == torch.float32
        wanted = dense.get_submodule(name).weight.grad[chosen[name]]
        assert (layer.values.grad - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("level", ["lossless", "pruned(1.0)", "pruned(0.2, bf16)"])
@pytest.mark.parametrize("kind", [sparsify, None])
def test_levels_of_the_store(kind: object, level: str) -> None:
    """As all is kept, to the bit, where nothing is lost; the first layer has its images in float32 from outside."""
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    found = []
    for each in ("dense", level):
        net = model()
        net = sparsify(net, masks=masks(net, 1)) if kind else net
        keep_activations(net, each)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        F.cross_entropy(out.float(), y).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        pruned = level.startswith("pruned(0.2") and name in ("0.values", "3.values", "0.weight", "3.weight")
        assert torch.equal(found[1][name], gradient) != pruned, name


def test_float64_stays_as_in_torch() -> None:
    t = Topology.from_mask(torch.ones(4, 5, dtype=torch.bool))
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.spmm(torch.randn(20, dtype=torch.float64), t, x).dtype == torch.float64
        assert F.linear(x, x[:2]).dtype == torch.float64


def test_half_types_run_on_dense_torch_on_the_cpu() -> None:
    """The sparse kernels of the CPU know float32 and float64; forced, they say so."""
    t = Topology.from_mask(torch.eye(6, dtype=torch.bool))
    x, values = torch.randn(3, 6).bfloat16(), torch.randn(6).bfloat16()
    assert torch.equal(ops.spmm(values, t, x), x * values)
    with ops.use_backend("cpu"), pytest.raises(RuntimeError):
        ops.spmm(values, t, x)
