"""The levels of the activation store: the same bits where that is promised, near them where not, less memory."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models
from fedsparse.federated.meter import live_bytes, peak_bytes, reset_peak
from fedsparse.nn import keep_activations, sparsify, standardise, use_region

EXACT = ["lossless", "recompute"]


def model_of(name: str, norm: str = "batch", level: str = "dense") -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name, 10, norm=norm, width=1.0 if name == "resnet20" else 0.25)
    return keep_activations(sparsify(model, 0.1), level)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits, gradients and running statistics of a training step."""
    logits = model(x)
    functional.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    statistics = [b for b in model.buffers() if b.is_floating_point()]
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *statistics]


@pytest.mark.parametrize("level", EXACT)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vgg11", "cnn"])
def test_bits_are_those_of_a_step_that_keeps_all(name: str, norm: str, level: str) -> None:
    x = torch.randn(17, 3, 32, 32)
    kept, computed = step(model_of(name, norm), x), step(model_of(name, norm, level), x)
    assert len(kept) == len(computed) > 8
    assert all(torch.equal(a, b) for a, b in zip(kept, computed))


class Shared(nn.Module):
    """Gradients that go to several: to two convolutions and a sum, to two norms with addition and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.k, self.m, self.n = (nn.BatchNorm2d(16) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.stem(x)))
        x = torch.relu(self.m(self.a(x)) + x) + torch.relu(self.k(self.b(x)) + x)
        return self.head((self.c(x) + self.d(x) + x).mean((2, 3)))


@pytest.mark.parametrize("level", EXACT)
def test_a_gradient_that_goes_to_several_is_not_overwritten(level: str) -> None:
    torch.manual_seed(0)
    model, x = sparsify(Shared(), 0.3), torch.randn(32, 3, 48, 48)  # 4.7 MB, in parts
    with use_region(False):
        ordinary = step(copy.deepcopy(model), x)
    kept, computed = step(copy.deepcopy(model), x), step(keep_activations(copy.deepcopy(model), level), x)
    assert all(torch.equal(a, b) for a, b in zip(kept, computed, strict=True))
    for a, b in zip(computed, ordinary, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", EXACT)
def test_bits_without_norms_and_outside_the_region(level: str) -> None:
    """NSConv and ReLU, whose outputs no norm can make again; and ordinary tensors, where ReLU's outputs are packed."""
    x = torch.randn(17, 3, 32, 32)
    torch.manual_seed(0)
    plain = sparsify(standardise(models.build("resnet20", 10)), 0.1)
    for model, region in ((plain, True), (plain, False), (model_of("resnet20"), False)):
        results = []
        for chosen in ("dense", level):
            with use_region(region):
                results.append(step(keep_activations(copy.deepcopy(model), chosen), x))
        assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bf16_is_near() -> None:
    """Of each parameter's gradient by less than 2 % of its norm; bfloat16 has 8 bits, so each value errs by 0.2 %."""
    x = torch.randn(32, 3, 32, 32)
    model = model_of("resnet20")
    exact, near = (step(keep_activations(copy.deepcopy(model), level), x) for level in ("dense", "bf16"))
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(exact, near)]
    assert 0 < max(errors) < 0.02, errors


def test_pruned_in_blocks_is_pruned_on_ordinary_tensors() -> None:
    torch.manual_seed(0)
    model = keep_activations(sparsify(standardise(models.build("resnet20", 10).double()), 0.1), "pruned(0.2)")
    x = torch.randn(11, 3, 32, 32, dtype=torch.float64)
    results = []
    for region in (True, False):
        with use_region(region):
            results.append(step(copy.deepcopy(model), x))
    for inside, outside in zip(*results):
        torch.testing.assert_close(inside, outside, rtol=1e-9, atol=1e-12)


def test_a_step_holds_less() -> None:
    x = torch.randn(32, 3, 32, 32)
    peaks = []
    for level in ("dense", "lossless", "bf16", "recompute"):
        model = model_of("resnet20", level=level)
        reset_peak()
        before = live_bytes()
        step(model, x)
        peaks.append(peak_bytes() - before)
    for peak, most in zip(peaks, (1.0, 0.6, 0.45, 0.45)):
        assert peak <= most * peaks[0], peaks


@pytest.mark.parametrize("level", [*EXACT, "bf16", "pruned(0.2, bf16)"])
def test_nothing_outlives_the_step(level: str) -> None:
    model, x = model_of("resnet20", level=level), torch.randn(16, 3, 32, 32)
    step(model, x)
    model.zero_grad()
    before = live_bytes()
    step(model, x)
    model.zero_grad()
    assert live_bytes() == before


@pytest.mark.parametrize("level", EXACT)
def test_a_second_backward_pass_has_the_same_bits(level: str) -> None:
    model = model_of("resnet20", level=level)
    loss = model(torch.randn(16, 3, 32, 32)).square().sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, parameters)))


def test_a_step_without_gradients_of_weights_keeps_the_bits() -> None:
    model = model_of("resnet20").requires_grad_(False)
    x = torch.randn(16, 3, 32, 32, requires_grad=True)
    gradients = [torch.autograd.grad(keep_activations(model, level)(x).sum(), x)[0] for level in ("dense", *EXACT)]
    assert all(torch.equal(gradients[0], g) for g in gradients)


def test_a_weight_changed_before_the_backward_pass_is_refused() -> None:
    model = model_of("resnet20", level="recompute")
    loss = model(torch.randn(16, 3, 32, 32)).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace operation"):
        loss.backward()


def test_nothing_is_computed_again_without_gradients() -> None:
    model = model_of("resnet20", level="recompute").eval()
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        again = model(x)
    assert torch.equal(again, model(x))
