"""Norms that keep no input, outputs of ReLU kept without their zeros: the same bits, less memory, and a clear refusal where that cannot be."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models
from fedsparse.federated.meter import live_bytes, peak_bytes, reset_peak
from fedsparse.nn import pack_relu_outputs, recompute_norm_inputs, sparsify


def model_of(name: str, norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    return sparsify(models.build(name, 10, norm=norm, width=1.0 if name == "resnet20" else 0.25), 0.1)


LESS = [{"recompute": True}, {"lossless": True}, {"recompute": True, "lossless": True}]


def step(model: nn.Module, x: Tensor, recompute: bool = False, lossless: bool = False) -> list[Tensor]:
    """Logits, gradients and running statistics of a training step."""
    with recompute_norm_inputs(recompute), pack_relu_outputs(lossless):
        logits = model(x)
        functional.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    statistics = [b for b in model.buffers() if b.is_floating_point()]
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *statistics]


@pytest.mark.parametrize("less", LESS, ids=" and ".join)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vgg11"])
def test_bits_are_those_of_a_step_that_keeps_all(name: str, norm: str, less: dict[str, bool]) -> None:
    model, x = model_of(name, norm), torch.randn(17, 3, 32, 32)
    kept, computed = step(copy.deepcopy(model), x), step(model, x, **less)
    assert len(kept) == len(computed) > 20
    assert all(torch.equal(a, b) for a, b in zip(kept, computed))


def test_a_step_holds_less() -> None:
    """Of a conv-norm-ReLU the input of the norm and the output of ReLU are kept; or the latter alone; or the former and
    of the latter the half that is not 0; or that half alone.
    """
    x = torch.randn(32, 3, 32, 32)
    peaks = []
    for less in ({}, *LESS):
        model = model_of("resnet20")
        reset_peak()
        before = live_bytes()
        step(model, x, **less)
        peaks.append(peak_bytes() - before)
    for peak, most in zip(peaks, (1.0, 0.65, 0.85, 0.5)):
        assert peak <= most * peaks[0], peaks


def test_a_step_without_gradients_of_weights_packs_nothing() -> None:
    model = model_of("resnet20").requires_grad_(False)
    x = torch.randn(16, 3, 32, 32, requires_grad=True)
    gradients = []
    for wanted in (False, True):
        with pack_relu_outputs(wanted):
            gradients += torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(*gradients)


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
