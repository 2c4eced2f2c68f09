"""Statistics of batch norm from data, without training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def batch_norms(model: nn.Module) -> list[Norm]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, Norm)]


@torch.no_grad()
def refresh_norms(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch norm to the mean of those of the batches `inputs`; weights stay.

    Leaves the model in training mode.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for x in inputs:
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
