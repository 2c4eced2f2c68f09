"""Norms that keep no input: the same bits, less memory, and a clear refusal where that cannot be."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models
from fedsparse.federated.meter import _cpu_meter
from fedsparse.nn import recompute_norm_inputs, sparsify


def model_of(name: str, norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    return sparsify(models.build(name, 10, norm=norm, width=1.0 if name == "resnet20" else 0.25), 0.1)


def step(model: nn.Module, x: Tensor, recompute: bool) -> list[Tensor]:
    """Logits, gradients and running statistics of a training step."""
    with recompute_norm_inputs(recompute):
        logits = model(x)
        functional.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    statistics = [b for b in model.buffers() if b.is_floating_point()]
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *statistics]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vgg11"])
def test_bits_are_those_of_norms_that_keep_their_input(name: str, norm: str) -> None:
    model, x = model_of(name, norm), torch.randn(17, 3, 32, 32)
    kept, computed = step(copy.deepcopy(model), x, False), step(model, x, True)
    assert len(kept) == len(computed) > 20
    assert all(torch.equal(a, b) for a, b in zip(kept, computed))


def test_a_step_holds_little_more_than_half() -> None:
    """Of a conv-norm-ReLU the input of the norm and the output of ReLU are kept, or the latter alone."""
    x = torch.randn(32, 3, 32, 32)
    peaks = []
    for recompute in (False, True):
        model = model_of("resnet20")
        meter = _cpu_meter()
        meter.fedsparse_meter_reset()
        before = meter.fedsparse_meter_live()
        step(model, x, recompute)
        peaks.append(meter.fedsparse_meter_peak() - before)
    assert peaks[1] < 0.65 * peaks[0], peaks


def test_a_weight_changed_before_the_backward_pass_is_refused() -> None:
    model = model_of("resnet20")
    with recompute_norm_inputs():
        loss = model(torch.randn(16, 3, 32, 32)).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace operation"):
        loss.backward()


def test_nothing_is_computed_again_without_gradients() -> None:
    model = model_of("resnet20").eval()
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad(), recompute_norm_inputs():
        again = model(x)
    assert torch.equal(again, model(x))
