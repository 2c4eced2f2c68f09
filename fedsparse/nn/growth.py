"""Collect, during an ordinary backward pass, the inactive weights with the largest gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn.layers import SparseLayer


@dataclass(frozen=True)
class Growth:
    """The inactive groups of one layer with the largest |gradient|.

    groups: int64 [a], sorted; a group is (n // V) * row_length + column, the flat weight index where V = 1.
    gradients: float32 [a] where V = 1, else [a, V].
    """

    groups: Tensor
    gradients: Tensor


@contextmanager
def collect_growth(layers: Mapping[str, nn.Module], counts: Mapping[str, int]) -> Iterator[dict[str, Growth]]:
    """Within the context, each backward pass fills the yielded dict with `counts[name]` candidates a layer.

    The gradient of one layer at a time is looked at, tile by tile (`ops.grow_scores`), while the backward pass stands
    at that layer: a dense gradient of the model never exists. One forward and backward pass at a time; a later one
    overwrites.
    """
    found: dict[str, Growth] = {}

    def watch(name: str, layer: SparseLayer) -> Any:
        def forward_hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()

            def backward_hook(gradient: Tensor) -> None:
                g, a = gradient.detach(), x
                if a.dim() != 4:
                    g, a = g.reshape(-1, g.shape[-1]), a.reshape(-1, a.shape[-1])
                with torch.no_grad():
                    found[name] = Growth(*ops.grow_scores(a, g, layer.topology, counts[name], **layer.geometry()))

            output.register_hook(backward_hook)

        return layer.register_forward_hook(forward_hook)

    handles = []
    for name in counts:
        layer = layers.get(name)
        if not isinstance(layer, SparseLayer):
            raise ValueError(f"growth is collected at sparse layers, and {name!r} is none")
        handles.append(watch(name, layer))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
