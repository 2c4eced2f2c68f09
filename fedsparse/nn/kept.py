"""What the blocked region keeps for the backward pass: all, no input of a norm, outputs of ReLU without their zeros."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_recomputes = False
_packs = False
Again = Callable[[], Tensor]
"""Computes blocks once more."""


@contextmanager
def recompute_norm_inputs(wanted: bool = True) -> Iterator[None]:
    """Within the context a norm in the region does not keep its input where a sparse convolution made it.

    The backward pass computes it again by that convolution, bit for bit: about half of the activations' memory for one
    more forward convolution. Norms whose input came from elsewhere keep it. RuntimeError in a backward pass before
    which the convolution's weights were changed in place.
    """
    global _recomputes
    before, _recomputes = _recomputes, wanted
    try:
        yield
    finally:
        _recomputes = before


def recomputes() -> bool:
    """Whether `recompute_norm_inputs` is in force and gradients are."""
    return _recomputes and torch.is_grad_enabled()


@contextmanager
def pack_relu_outputs(wanted: bool = True) -> Iterator[None]:
    """Within the context a sparse convolution of the region keeps an output of ReLU as a bitmap and its nonzero values.

    Nothing is lost: the backward pass unpacks it, bit for bit. A norm with an addition and a ReLU keeps one bit an
    element for that ReLU, not its output. What else keeps the output, as a dense layer does, keeps it as it is.
    """
    global _packs
    before, _packs = _packs, wanted
    try:
        yield
    finally:
        _packs = before


def packs() -> bool:
    """Whether `pack_relu_outputs` is in force and gradients are."""
    return _packs and torch.is_grad_enabled()


@contextmanager
def kept_as(blocks: Tensor, again: Again | None) -> Iterator[None]:
    """Within the context autograd keeps `again` in place of `blocks`, where it is given."""
    if again is None:
        yield
        return
    place = (blocks.data_ptr(), blocks.shape)

    def pack(saved: Tensor) -> Any:
        return again if (saved.data_ptr(), saved.shape) == place else saved

    with saved_tensors_hooks(pack, lambda saved: saved if isinstance(saved, Tensor) else saved()):
        yield
