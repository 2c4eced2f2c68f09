"""What an op on blocked tensors keeps of an operand in its place, and what its backward pass may overwrite."""

from typing import Protocol

import torch
from torch import Tensor

PART = 1 << 21
"""Bytes of a part: below that, running a kernel once more costs more than the memory is worth."""


class Kept(Protocol):
    """Gives an operand [blocks, C, H, W, L] in the backward pass, whole or some blocks of it.

    exact: whether with the bits that it had.
    """

    exact: bool

    def parts(self) -> list[tuple[int, int]]:
        """The (first, end) blocks of the parts in which it is best had: one where it can only be had whole."""

    def part(self, first: int, end: int) -> Tensor:
        """Those blocks."""

    def get(self) -> Tensor:
        """The whole, not to be overwritten."""

    def take(self) -> tuple[Tensor, bool]:
        """The whole, and whether it may be overwritten. Called by the op whose backward pass is the last to need it."""


def parts_of(blocks: int, nbytes: int) -> list[tuple[int, int]]:
    """The (first, end) blocks of parts of about PART bytes of a tensor of that many blocks and bytes."""
    size = max(1, PART * blocks // max(1, nbytes))
    return [(first, min(blocks, first + size)) for first in range(0, blocks, size)] or [(0, 0)]


def is_last() -> bool:
    """Whether the backward pass that runs now frees what the graph keeps, so that nothing needs it any more."""
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def only_here(gradient: Tensor) -> bool:
    """Whether a gradient that a backward function of the region was given is held by nobody else, and so may change.

    The engine and the function hold it; a third, as another function that it goes to or a hook of the node, or another
    tensor on the same memory shows in the counts. An object of Python that a hook of the blocks themselves keeps does
    not: nothing outside `fedsparse.nn.region` sees them.
    """
    holders = torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)
    count: int = gradient._use_count()  # type: ignore[attr-defined]
    return count <= 2 and holders <= 2 and gradient.is_contiguous()
