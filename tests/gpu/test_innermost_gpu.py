"""Networks whose activations keep their images innermost, on the device: the numbers of dense torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sparse_problems import LIMITS, error, poison, random

from fedsparse import ops
from fedsparse.models import build
from fedsparse.nn import Cohort, explain, sparsify


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (48, 5, 7, 9), (128, 3, 33, 31)])
def test_batch_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype).cuda().permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2).requires_grad_()
    weight, bias = (random(shape[1], seed=seed).cuda().requires_grad_() for seed in (1, 2))
    running = [torch.zeros(shape[1], device="cuda"), torch.ones(shape[1], device="cuda")]
    gy = random(*shape, dtype=dtype, seed=3).cuda()
    wide = [each.detach().double().cpu().requires_grad_() for each in (x, weight, bias)]
    exact = [each.double().cpu() for each in running]
    poison()
    y = ops.innermost_norm(x, *running, weight, bias, True, 0.1, 1e-5)
    expected = F.batch_norm(wide[0], *exact, wide[1], wide[2], True, 0.1, 1e-5)
    found = torch.autograd.grad(y, (x, weight, bias), gy)
    wanted = torch.autograd.grad(expected, wide, gy.double().cpu())
    for ours, theirs in zip((y.detach(), *running, *found), (expected.detach(), *exact, *wanted), strict=True):
        assert error(ours, theirs) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (6, 5, 7, 9), (128, 3, 33, 31)])
def test_batch_norm_with_a_residual_and_a_relu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Against the same three steps of float32 torch on the device, with the mask that our output says."""
    x, residual = (
        random(*shape, dtype=dtype, seed=seed).cuda().permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        for seed in (0, 4)
    )
    own = [each.requires_grad_() for each in (x, residual)]
    weight, bias = (random(shape[1], seed=seed).cuda().requires_grad_() for seed in (1, 2))
    gy = random(*shape, dtype=dtype, seed=3).cuda()
    poison()
    y = ops.innermost_norm(own[0], None, None, weight, bias, True, 0.1, 1e-5, own[1], relu=True)
    found = torch.autograd.grad(y, (*own, weight, bias), gy)
    wide = [each.detach().double().requires_grad_() for each in (*own, weight, bias)]
    total = F.batch_norm(wide[0], None, None, wide[2], wide[3], True, 0.1, 1e-5) + wide[1]
    assert error(y.detach(), total.detach().relu().cpu()) <= LIMITS[dtype]
    wanted = torch.autograd.grad(total, wide, torch.where(y > 0, gy, 0).double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs.cpu()) <= LIMITS[dtype]


@pytest.mark.parametrize(
    ("shape", "groups", "dtype"),
    [
        *(((64, 32, 8, 8), 8, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
        ((6, 5, 7, 9), 1, torch.float32),
        ((130, 6, 33, 31), 6, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_group_norm(shape: tuple[int, ...], groups: int, dtype: torch.dtype, fused: bool) -> None:
    """Alone, and with a residual and a ReLU whose mask our output says; float64 on the device."""
    x, residual = (
        random(*shape, dtype=dtype, seed=seed).cuda().permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        for seed in (0, 4)
    )
    own = [each.requires_grad_() for each in ((x, residual) if fused else (x,))]
    own += [random(shape[1], seed=seed).cuda().requires_grad_() for seed in (1, 2)]
    gy = random(*shape, dtype=dtype, seed=3).cuda()
    poison()
    added = own[1] if fused else None
    y = ops.innermost_group_norm(own[0], groups, own[-2], own[-1], 1e-5, added, relu=fused)
    found = torch.autograd.grad(y, own, gy)
    wide = [each.detach().double().requires_grad_() for each in own]
    total = F.group_norm(wide[0], groups, wide[-2], wide[-1], 1e-5)
    total = total + wide[1] if fused else total
    expected = total.detach().relu() if fused else total.detach()
    assert error(y.detach(), expected.cpu()) <= LIMITS[dtype]
    wanted = torch.autograd.grad(total, wide, torch.where(y > 0, gy, 0).double() if fused else gy.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs.cpu()) <= LIMITS[dtype]


@pytest.mark.parametrize("granularity", [1, 16])
def test_a_network_in_the_layout_and_out_of_it(granularity: int) -> None:
    torch.manual_seed(0)
    model = sparsify(build("resnet20", 10), 0.3, granularity=granularity).cuda()
    plain = copy.deepcopy(model).double()
    x, y = random(32, 3, 32, 32).cuda(), (torch.arange(32) % 10).cuda()
    with ops.use_backend("triton"):
        F.cross_entropy(model(x), y).backward()
    with ops.use_backend("dense"):
        F.cross_entropy(plain(x.double()), y).backward()
    assert explain(model).count("norm + residual + ReLU in one kernel") == 9, "one in each of the 9 blocks"
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert error(ours.grad, theirs.grad.cpu()) <= 1e-2, name


@pytest.mark.parametrize("backend", ["triton", "dense"])
def test_a_cohort_and_its_clients_alone(backend: str) -> None:
    torch.manual_seed(0)
    model = sparsify(build("resnet20", 10), 0.3, granularity=16).cuda()
    batches = [(random(16, 3, 32, 32, seed=k).cuda(), torch.arange(16).cuda() % 10) for k in range(3)]

    def cohort(count: int) -> Cohort:
        return Cohort(model, count, lambda them: torch.optim.SGD(them, lr=0.1, momentum=0.9), F.cross_entropy)

    with ops.use_backend(backend):
        together = cohort(3)
        together.step(batches)
        for k, batch in enumerate(batches):
            alone = cohort(1)
            alone.step([batch])
            for name, stacked in together.parameters.items():
                change = stacked.detach()[k] - model.get_parameter(name).detach()
                expected = alone.parameters[name].detach()[0] - model.get_parameter(name).detach()
                assert error(change, expected.double().cpu()) <= 1e-2, name


def test_a_pass_is_measured_and_then_runs_on_the_faster_back_end(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSPARSE_CACHE", str(tmp_path))
    model = sparsify(torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3, padding=1)), 0.1, granularity=32).cuda()
    x = random(64, 32, 16, 16).cuda()
    model(x)
    (layer,) = model
    assert {str(choice) for choice in layer.choices().values()} == {"dense (not measured)"}
    with ops.measuring():
        model(x).sum().backward()
    chosen = layer.choices()
    assert set(chosen["forward"].times) == set(chosen["weight gradient"].times) == {"triton", "dense"}
    assert chosen["forward"].name == min(chosen["forward"].times, key=chosen["forward"].times.__getitem__)
