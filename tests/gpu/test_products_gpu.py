"""The linear and the convolution family on the device against float64 on the CPU."""

from typing import Any

import pytest
import torch
from sparse_problems import LIMITS, assert_on_gpu, error, random, topology

from fedsparse import ops
from fedsparse.topology import Topology

# (batch, N, C, density): why this shape
LINEAR = {
    "smaller than any tile": (3, 5, 7, 0.4),
    "one over the batch tile": (65, 33, 129, 0.2),
    "one under the batch tile": (63, 31, 127, 0.2),
    "many nonzeros in a row": (64, 16, 5000, 0.3),
    "one nonzero": (8, 9, 10, 0.0),
    "full": (40, 24, 48, 1.0),
    "a layer": (256, 512, 512, 0.05),
}
# (batch, N, C, kernel, size, stride, padding, dilation, density)
CONVOLUTIONS = {
    "3x3": (4, 24, 16, (3, 3), (14, 14), 1, 1, 1, 0.1),
    "stride 2, odd size": (3, 7, 5, (3, 3), (9, 11), 2, 1, 1, 0.3),
    "1x1": (5, 33, 17, (1, 1), (6, 6), 1, 0, 1, 0.2),
    "dilation and a non-square kernel": (2, 6, 4, (1, 3), (10, 12), 1, 2, 2, 0.4),
    "one nonzero": (2, 5, 3, (3, 3), (8, 8), 1, 1, 1, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", ["triton", "dense"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str, backend: str, dtype: torch.dtype) -> None:
    batch, rows, channels, density = LINEAR[name]
    t = topology((rows, channels), density)
    values, x = random(t.nnz, dtype=dtype), random(batch, channels, dtype=dtype, seed=1)
    gy = random(batch, rows, dtype=dtype, seed=2)
    assert_on_gpu(backend, lambda at: lambda v, a: ops.spmm(v, at, a), t, values, x)
    assert_on_gpu(backend, lambda at: lambda v, a: ops.spmm_t(v, at, a), t, values, gy)
    assert_on_gpu(backend, lambda at: lambda a, b: ops.sddmm(at, a, b), t, gy, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    batch, rows, channels, kernel, size, stride, padding, dilation, density = CONVOLUTIONS[name]
    t = topology((rows, channels, *kernel), density)
    how: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    values = random(t.nnz, dtype=dtype)
    x = random(batch, channels, *size, dtype=dtype, seed=1).contiguous(memory_format=layout)
    y = ops.conv2d(values.float(), t, x.float(), **how)
    gy = random(*y.shape, dtype=dtype, seed=2).contiguous(memory_format=layout)
    assert_on_gpu("dense", lambda at: lambda v, a: ops.conv2d(v, at, a, **how), t, values, x)
    assert_on_gpu("dense", lambda at: lambda v, a: ops.conv2d_input(v, at, a, size, **how), t, values, gy)
    assert_on_gpu("dense", lambda at: lambda a, b: ops.conv2d_weight(at, a, b, **how), t, gy, x)


# (batch, N, C, kernel, size, stride, padding, density, granularity)
VECTORS = {
    "strips of 16, stride 2, odd size": (17, 32, 24, (3, 3), (9, 11), 2, 1, 0.2, 16),
    "strips of 32": (64, 64, 64, (3, 3), (8, 8), 1, 1, 0.1, 32),
    "strips of 64, few entries": (20, 64, 40, (3, 3), (6, 7), 1, 1, 0.01, 64),
    "strips of 32, 1x1, stride 2": (33, 64, 48, (1, 1), (8, 8), 2, 0, 0.3, 32),
    "strips of 16, full": (16, 32, 16, (3, 3), (5, 5), 1, 1, 1.0, 16),
    "single weights": (5, 24, 16, (3, 3), (14, 14), 1, 1, 0.1, 1),
    "single weights, stride 2": (18, 7, 5, (3, 3), (9, 11), 2, 1, 0.3, 1),
}


# Every dtype of a shape costs half a dozen compiles of about a second each.
VECTOR_RUNS = [(name, dtype) for name in VECTORS for dtype in (torch.float32, torch.bfloat16)]
VECTOR_RUNS += [
    (name, dtype) for name in ("strips of 32", "single weights") for dtype in (torch.float16, torch.float64)
]


@pytest.mark.parametrize(("name", "dtype"), VECTOR_RUNS)
def test_triton_convolution(name: str, dtype: torch.dtype) -> None:
    """To the same bits twice, and strict in float32."""
    batch, rows, channels, kernel, size, stride, padding, density, granularity = VECTORS[name]
    groups = topology((rows // granularity, channels, *kernel), density).mask()
    t = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity)
    how: dict[str, Any] = {"stride": stride, "padding": padding}
    values, x = random(t.nnz, dtype=dtype), random(batch, channels, *size, dtype=dtype, seed=1)
    y = ops.conv2d(values.float(), t, x.float(), **how)
    gy = random(*y.shape, dtype=dtype, seed=2)
    for backend in ("triton", "condensed") if granularity == 1 else ("triton",):
        assert_on_gpu(backend, lambda at: lambda v, a: ops.conv2d(v, at, a, **how), t, values, x)
        assert_on_gpu(backend, lambda at: lambda v, a: ops.conv2d_input(v, at, a, size, **how), t, values, gy)
        assert_on_gpu(backend, lambda at: lambda a, b: ops.conv2d_weight(at, a, b, **how), t, gy, x)


@pytest.mark.parametrize("granularity", [1, 32])
@pytest.mark.parametrize("family", ["linear", "conv2d"])
def test_clients_in_one_launch(family: str, granularity: int) -> None:
    """Each client has the bits that it has alone."""
    shape = (64, 24) if family == "linear" else (64, 24, 3, 3)
    groups = topology((64 // granularity, *shape[1:]), 0.2).mask()
    t = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity).to("cuda")
    size = () if family == "linear" else (7, 7)
    values, x = random(3, t.nnz).cuda().requires_grad_(), random(3, 20, 24, *size, seed=1).cuda().requires_grad_()

    def run(v: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
        return ops.spmm(v, t, each) if family == "linear" else ops.conv2d(v, t, each, padding=1)

    with ops.use_backend("triton"):
        y = torch.vmap(run)(values, x)
        gy = torch.randn_like(y)
        gradients = torch.autograd.grad(y, (values, x), gy)
        for k in range(3):
            own = [values[k].detach().requires_grad_(), x[k].detach().requires_grad_()]
            alone = run(*own)
            assert error(y[k].detach(), alone.detach().double().cpu()) <= 1e-6
            for found, wanted in zip(gradients, torch.autograd.grad(alone, own, gy[k]), strict=True):
                assert error(found[k], wanted.double().cpu()) <= 1e-6


@pytest.mark.parametrize("granularity", [1, 32])
@pytest.mark.parametrize("backend", ["triton", "dense"])
def test_training_step_under_autocast(backend: str, granularity: int) -> None:
    """A sparse layer's float32 values under bfloat16 autocast, in channels_last, as its dense twin."""
    groups = topology((64 // granularity, 24, 3, 3), 0.2).mask()
    t = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity).to("cuda")
    values = random(t.nnz).cuda().requires_grad_()
    weight = t.unpack(values.detach()).requires_grad_()
    x = random(32, 24, 8, 8, seed=1).cuda().contiguous(memory_format=torch.channels_last)
    with ops.use_backend(backend), torch.autocast("cuda", torch.bfloat16):
        y = ops.conv2d(values, t, x, padding=1)
        dense = torch.nn.functional.conv2d(x, weight, padding=1)
    assert y.dtype == torch.bfloat16
    gy = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, values, gy)
    (wanted,) = torch.autograd.grad(dense, weight, gy)
    assert found.dtype == torch.float32
    assert error(y.detach(), dense.detach().double().cpu()) <= 1e-2
    assert error(found, t.pack(wanted).double().cpu()) <= 1e-2


@pytest.mark.parametrize("granularity", [1, 32])
def test_triton_convolution_captured_in_a_graph(granularity: int) -> None:
    groups = topology((64 // granularity, 24, 3, 3), 0.2).mask()
    t = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity).to("cuda")
    values, x = random(t.nnz).cuda().requires_grad_(), random(16, 24, 8, 8, seed=1).cuda().requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        y = ops.conv2d(values, t, x, padding=1)
        return (y, *torch.autograd.grad(y, (values, x), torch.ones_like(y)))

    with ops.use_backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = step()
        with torch.no_grad():
            x.copy_(random(16, 24, 8, 8, seed=9))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.parametrize("backend", ["triton", "dense"])
def test_gradients(backend: str) -> None:
    t = topology((20, 30), 0.3)
    x, values, bias = random(9, 30, seed=1), random(t.nnz), random(20, seed=2)
    expected = [tensor.double().requires_grad_() for tensor in (values, x, bias)]
    on_device = [tensor.cuda().requires_grad_() for tensor in (values, x, bias)]
    with ops.use_backend("reference"):
        ops.spmm(expected[0], t, expected[1], expected[2]).square().sum().backward()
    with ops.use_backend(backend):
        ops.spmm(on_device[0], t.to("cuda"), on_device[1], on_device[2]).square().sum().backward()
    for ours, theirs in zip(on_device, expected, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert error(ours.grad, theirs.grad) <= LIMITS[torch.float32]


def test_triton_runs_in_the_current_stream() -> None:
    t = topology((200, 300), 0.1).to("cuda")
    values, x = random(t.nnz).cuda(), torch.zeros(64, 300, device="cuda")
    expected, large = random(64, 300, seed=4).cuda(), random(3000, 3000).cuda()
    with ops.use_backend("triton"):
        right = ops.spmm(values, t, expected)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(50):
                large = large @ large
                large = large / large.norm()
            x.copy_(expected)
            out = ops.spmm(values, t, x)
    side.synchronize()
    assert torch.equal(out, right)


def test_default_back_end_of_the_device() -> None:
    assert ops.active_backend("cuda") == "dense"
    with pytest.raises(ValueError, match="needs tensors on cpu"), ops.use_backend("cpu"):
        ops.active_backend("cuda")
