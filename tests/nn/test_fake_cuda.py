"""Forward passes, ops and optimizers on CUDA tensors that hold no data (torch's FakeTensorMode), on a machine without a GPU.

A fake tensor knows its device, dtype and shape: an operation that mixes devices or dtypes raises as on a GPU, and so does
whatever would wait for the GPU to know a value (`item`, `nonzero`). What runs is the path of the dense back end, the
default on CUDA.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedsparse import ops
from fedsparse.federated.loss import cross_entropy
from fedsparse.models import build
from fedsparse.nn import sparse_layers, sparsify
from fedsparse.ops import dispatch
from fedsparse.optim import SGD, Adam
from fedsparse.topology import Topology

MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 0.25},
    "mobilenetv2": {"width": 0.5},
    "mlp": {},
    "gpt": {"width": 0.5, "context": 8},
}


@pytest.fixture(autouse=True)
def as_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch and `ops.dispatch` ask the driver."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(dispatch, "_name_of", lambda _: "Some GPU")


def to_fake_cuda(model: nn.Module) -> nn.Module:
    """Every parameter and buffer as a fake CUDA tensor; call within the mode."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return model


def batch_of(name: str) -> tuple[Tensor, Tensor]:
    if name == "gpt":
        tokens = torch.zeros(4, 8, dtype=torch.int64, device="cuda")
        return tokens, tokens
    return torch.empty(4, 3, 32, 32, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("granularity", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_optimizer_stay_on_the_gpu_and_wait_for_nothing(name: str, granularity: int, half: bool) -> None:
    """The backward pass of a network needs autograd's engine, and that a driver: its ops are tested below."""
    model = sparsify(build(name, 12, **MODELS[name]), 0.2, granularity=granularity)
    with FakeTensorMode(allow_non_fake_inputs=False):
        model = to_fake_cuda(model)
        assert sparse_layers(model)
        x, y = batch_of(name)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            output = model(x)
        loss = cross_entropy(output.float(), y)
        assert loss.device.type == "cuda"
        assert output.dtype == (torch.bfloat16 if half else torch.float32)
        for kind in (SGD, Adam):
            optimizer = kind(model.parameters(), lr=0.1)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3, 3)])
def test_all_three_products_stay_on_the_gpu_and_wait_for_nothing(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    t = Topology.from_mask(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3).with_transpose()
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        arrays = ("indptr", "cols", "t_indptr", "t_cols", "t_perm")
        on_gpu = {n: torch.empty(getattr(t, n).shape, dtype=torch.int32, device="cuda") for n in arrays}
        t = Topology(t.shape, **on_gpu)
        values = torch.empty(t.nnz, dtype=dtype, device="cuda")
        if len(shape) == 2:
            x, gy = (torch.empty(4, width, dtype=dtype, device="cuda") for width in (6, 8))
            found = [ops.spmm(values, t, x), ops.spmm_t(values, t, gy), ops.sddmm(t, gy, x)]
        else:
            x = torch.empty(4, 6, 9, 7, dtype=dtype, device="cuda").to(memory_format=layout)
            gy = torch.empty(4, 8, 5, 4, dtype=dtype, device="cuda").to(memory_format=layout)
            how = {"stride": 2, "padding": 1}
            found = [ops.conv2d(values, t, x, **how)]
            found += [ops.conv2d_input(values, t, gy, (9, 7), **how), ops.conv2d_weight(t, gy, x, **how)]
        assert [each.shape for each in found] == [gy.shape, x.shape, values.shape]
        assert {(each.device.type, each.dtype) for each in found} == {("cuda", dtype)}


def test_the_check_sees_a_wait_and_a_wrong_device() -> None:
    with FakeTensorMode():
        x = torch.empty(3, device="cuda")
        with pytest.raises(Exception, match="local_scalar_dense|data-dependent"):
            float(x.sum())
        with pytest.raises(Exception, match=r"device"):
            _ = x + torch.empty(3)


def test_unpack_and_gather_have_cuda_shapes() -> None:
    t = Topology.from_mask(torch.ones(4, 3, 2, 2, dtype=torch.bool))
    with FakeTensorMode():
        arrays = {n: torch.empty(getattr(t, n).shape, dtype=torch.int32, device="cuda") for n in ("indptr", "cols")}
        fake = Topology(t.shape, **arrays, t_indptr=arrays["indptr"], t_cols=arrays["cols"], t_perm=arrays["cols"])
        values = torch.empty(48, device="cuda", dtype=torch.bfloat16)
        dense = ops.unpack(values, fake)
        assert (dense.shape, dense.device.type, dense.dtype) == ((4, 3, 2, 2), "cuda", torch.bfloat16)
        assert ops.gather(dense, fake).shape == (48,)
