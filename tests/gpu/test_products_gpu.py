"""The linear and the convolution family on the device against float64 on the CPU."""

from typing import Any

import pytest
import torch
from sparse_problems import LIMITS, assert_on_gpu, error, random, topology

from fedsparse import ops

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
