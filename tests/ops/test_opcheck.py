"""torch's own checks of the registered ops, and torch.compile without graph breaks."""

import pytest
import torch
from op_cases import CONVS, LINEARS, Conv, Linear, conv_operands, linear_operands, parametrize
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

RAW = torch.ops.fedsparse
CONV_SAMPLES = ("primes", "stride 2", "pointwise", "nothing active", "rectangular everything")
LINEAR_SAMPLES = ("primes", "one sample", "nothing active")


@parametrize({reason: CONVS[reason] for reason in CONV_SAMPLES})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conv2d(case: Conv, dtype: torch.dtype) -> None:
    t, values, x, bias = conv_operands(case, dtype)
    geometry = [list(pair) for pair in (case.kernel, case.stride, case.padding, case.dilation)]
    gy = torch.randn_like(ops.conv2d(values, t, x, **case.geometry))
    torch.library.opcheck(RAW.conv2d, (values, t.indptr, t.cols, t.granularity, x, bias, *geometry))
    torch.library.opcheck(RAW.conv2d, (values, t.indptr, t.cols, t.granularity, x, None, *geometry))
    size = [case.H, case.W]
    for index in (Index.of(t), Index.of(t.with_transpose())):
        torch.library.opcheck(RAW.conv2d_input, (values, *index, gy, size, *geometry))
    torch.library.opcheck(RAW.conv2d_weight, (t.indptr, t.cols, t.granularity, gy, x, *geometry))


@parametrize({reason: LINEARS[reason] for reason in LINEAR_SAMPLES})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spmm(case: Linear, dtype: torch.dtype) -> None:
    t, values, x, bias = linear_operands(case, dtype)
    gy = torch.randn(case.B, case.N, dtype=dtype)
    torch.library.opcheck(RAW.spmm, (values, t.indptr, t.cols, t.granularity, x, bias))
    for index in (Index.of(t), Index.of(t.with_transpose())):
        torch.library.opcheck(RAW.spmm_t, (values, *index, gy))
    torch.library.opcheck(RAW.sddmm, (t.indptr, t.cols, t.granularity, gy, x))


class Layer(nn.Module):
    """A layer as users write one: values as parameter, topology as attribute."""

    def __init__(self, topology: Topology, values: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.topology, self.values, self.bias = topology, nn.Parameter(values), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return ops.spmm(self.values, self.topology, x, self.bias).relu()
        return ops.conv2d(self.values, self.topology, x, self.bias, stride=2, padding=1).relu()


@pytest.mark.parametrize("backend", ["cpu", "dense", "reference"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_compile_in_one_graph(kind: str, backend: str) -> None:
    operands = (conv_operands(CONVS["primes"], torch.float32), linear_operands(LINEARS["primes"], torch.float32))
    topology, values, x, bias = operands[kind == "linear"]
    layer = Layer(topology, values, bias)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = []
    with ops.use_backend(backend):
        for run in (layer, compiled):
            layer.zero_grad()
            source = x.clone().requires_grad_()
            y = run(source)
            y.square().sum().backward()
            found.append((y, layer.values.grad, layer.bias.grad, source.grad))
    for eager, traced in zip(*found):
        torch.testing.assert_close(traced, eager)


def test_compile_with_another_batch() -> None:
    topology, values, x, bias = conv_operands(CONVS["primes"], torch.float32)
    layer = Layer(topology, values, bias)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for images in (x, torch.cat((x, x)), x[:1]):
        torch.testing.assert_close(compiled(images), layer(images))
