"""unpack and gather on the device: exact, whatever the shape, dtype, device and stream."""

import pytest
import torch
from sparse_problems import poison, random, topology

from fedsparse import ops

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# (shape, density): why this shape
SHAPES = {
    "several tiles of a row, 16-byte rows": ((64, 512, 3, 3), 0.05),
    "rows that are no multiple of 16 bytes": ((64, 3, 3, 3), 0.4),
    "odd tail after full tiles": ((5, 4133), 0.05),
    "one element": ((1, 1), 1.0),
    "full": ((33, 65), 1.0),
    "one nonzero": ((7, 9), 0.0),
    "more rows than one block of gather": ((3000, 17), 0.02),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_exact(name: str, dtype: torch.dtype) -> None:
    t = topology(*SHAPES[name])
    values, dense = random(t.nnz, dtype=dtype), random(*t.shape, dtype=dtype, seed=1)
    on_device = t.to("cuda")
    poison()
    assert torch.equal(ops.unpack(values.cuda(), on_device).cpu(), t.unpack(values))
    assert torch.equal(ops.gather(dense.cuda(), on_device).cpu(), t.pack(dense))


def test_gradients_are_each_other() -> None:
    t = topology((6, 5, 3, 3), 0.3).to("cuda")
    values = random(t.nnz, dtype=torch.float64).cuda().requires_grad_()
    dense = random(*t.shape, dtype=torch.float64).cuda().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.unpack(v, t), values)
    assert torch.autograd.gradcheck(lambda w: ops.gather(w, t), dense)


def test_runs_in_the_current_stream() -> None:
    """The values are written late in a side stream: an op in another stream would read what was there before."""
    t = topology((512, 512, 3, 3), 0.05).to("cuda")
    values = torch.zeros(t.nnz, device="cuda")
    expected = random(t.nnz).cuda()
    large = random(3000, 3000).cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(50):
            large = large @ large
            large = large / large.norm()
        values.copy_(expected)
        dense = ops.unpack(values, t)
        back = ops.gather(dense, t)
    side.synchronize()
    assert torch.equal(back, expected)


def test_captured_in_a_graph() -> None:
    t = topology((40, 300), 0.1).to("cuda")
    values = random(t.nnz).cuda()
    ops.unpack(values, t)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dense = ops.unpack(values, t)
    values.copy_(random(t.nnz, seed=5))
    graph.replay()
    assert torch.equal(dense, t.unpack(values))


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    t = topology((40, 300), 0.1)
    values = random(t.nnz)
    out = ops.unpack(values.to("cuda:1"), t.to("cuda:1"))
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(out.cpu(), t.unpack(values))


def test_compiled_library_says_so() -> None:
    assert ops.compiled()["cuda_library"]
