"""Scores by which an initial mask is chosen: magnitude, SNIP, GraSP, SynFlow, random.

All functions take a *dense* model and the names of its prunable layers and return a float score of each weight's
shape by layer name; higher is kept. SynFlow returns the mask itself, since it prunes in many steps.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsparse.pruning.masks import Distribution, masks_from_scores

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores."""
    return {name: torch.rand(w.shape, generator=generator) for name, w in weights.items()}


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w|."""
    return {name: w.detach().abs() for name, w in weights.items()}


def snip(model: nn.Module, names: Sequence[str], batches: Batches, loss: Loss) -> dict[str, Tensor]:
    """|g w| with g the gradient of the mean loss over the batches (Lee et al., ICLR 2019)."""
    weights = _weights(model, names)
    gradients = _gradients(model, list(weights.values()), batches, loss)
    return {name: (g * w.detach()).abs() for (name, w), g in zip(weights.items(), gradients)}


def grasp(
    model: nn.Module, names: Sequence[str], batches: Batches, loss: Loss, temperature: float = 200.0
) -> dict[str, Tensor]:
    """w * Hg, whose highest scores are kept, with logits / temperature (Wang et al., ICLR 2020)."""
    weights = _weights(model, names)
    parameters = list(weights.values())
    scores = [torch.zeros_like(w) for w in parameters]
    batches = list(batches)
    # Fused attention has no second derivative, its plain formula has.
    with sdpa_kernel(SDPBackend.MATH):
        mean = [g.detach() for g in _gradients(model, parameters, batches, lambda z, y: loss(z / temperature, y))]
        for x, y in batches:
            gradients = torch.autograd.grad(loss(model(x) / temperature, y), parameters, create_graph=True)
            product = torch.stack([(g * m).sum() for g, m in zip(gradients, mean)]).sum()
            for score, w, hg in zip(scores, parameters, torch.autograd.grad(product, parameters)):
                score += w.detach() * hg
    return {name: score / len(batches) for name, score in zip(weights, scores)}


def synflow_masks(
    model: nn.Module,
    names: Sequence[str],
    input_shape: tuple[int, ...],
    density: float,
    distribution: Distribution = "global",
    granularity: int = 1,
    steps: int = 100,
) -> dict[str, Tensor]:
    """Masks by iterative SynFlow (Tanaka et al., NeurIPS 2020): step k of `steps` keeps density^(k / steps).

    |w| everywhere, an all-ones input of shape (1, *input_shape), norm layers in eval mode, float64; the score is
    |dR/dw * w| with R the sum of the outputs.
    """
    linear = copy.deepcopy(model).double().eval()
    for tensor in (*linear.parameters(), *linear.buffers()):
        if tensor.is_floating_point():
            tensor.data.abs_()
    weights = _weights(linear, names)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=next(linear.parameters()).device)
    for step in range(1, steps + 1):
        gradients = torch.autograd.grad(linear(ones).sum(), list(weights.values()))
        flow = {name: (g * w.detach()).abs() for (name, w), g in zip(weights.items(), gradients)}
        scores = {name: torch.where(masks[name], score, -1.0) for name, score in flow.items()}
        masks = masks_from_scores(scores, density ** (step / steps), distribution, granularity)
        for name, w in weights.items():
            w.data.mul_(masks[name])
    return masks


def _weights(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: model.get_parameter(f"{name}.weight" if name else "weight") for name in names}


def _gradients(model: nn.Module, parameters: list[Tensor], batches: Batches, loss: Loss) -> list[Tensor]:
    sums = [torch.zeros_like(p) for p in parameters]
    count = 0
    for x, y in batches:
        for total, g in zip(sums, torch.autograd.grad(loss(model(x), y), parameters)):
            total += g
        count += 1
    if count == 0:
        raise ValueError("a score needs at least one batch")
    return [total / count for total in sums]
