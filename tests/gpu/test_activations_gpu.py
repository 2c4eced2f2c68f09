"""What is kept of activations, on the device: packed activations and ReLU's bits are those of the CPU."""

import pytest
import torch
from sparse_problems import poison, random

from fedsparse import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 7), (64, 3, 33, 31), (128, 64, 32, 32)])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_packed_activations(shape: tuple[int, ...], dtype: torch.dtype, share: float) -> None:
    """After a ReLU; half types have many ties."""
    x = random(*shape, dtype=dtype).relu()
    half = dtype == torch.float32
    with ops.use_backend("reference"):
        expected = ops.pack_activation(x, share, half)
        whole, some = expected.unpack(), expected.unpack(0, 1)
    poison()
    found = ops.pack_activation(x.cuda(), share, half)
    for ours, theirs in zip(
        (found.bits, found.values, found.starts), (expected.bits, expected.values, expected.starts)
    ):
        assert torch.equal(ours.cpu(), theirs)
    assert torch.equal(found.unpack().cpu(), whole)
    assert torch.equal(found.unpack(0, 1).cpu(), some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("limit", [float("inf"), 1.0])
@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_relu(innermost: bool, inplace: bool, limit: float, dtype: torch.dtype) -> None:
    """Output, gradient and the bytes that are kept, in whatever order the tensor stands in memory."""
    x = random(16, 3, 33, 31, dtype=dtype).cuda()
    x[0, 0, 0, :3] = torch.tensor([torch.nan, 0.0, 1.0], dtype=dtype)
    x = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) if innermost else x
    gy = random(*x.shape, dtype=dtype, seed=1).cuda()
    leaf, kept = x.clone().requires_grad_(), []
    poison()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        y = ops.relu(leaf * 1, inplace, limit)
    (found,) = torch.autograd.grad(y, leaf, gy)
    assert kept[-1] == (x.numel() + 7) // 8
    assert torch.equal(y.detach().nan_to_num(-1), x.clamp(0, limit).nan_to_num(-1))
    assert torch.equal(found, torch.where((x <= 0) | (x >= limit), 0, gy))
