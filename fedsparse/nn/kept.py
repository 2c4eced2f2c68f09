"""How the backward pass gets activations that are not kept as they were: in blocks, or with images innermost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedsparse.ops.kept import is_last, parts_of

STEPS = 4
"""Norms and additions that are done again at most to have a tensor once more."""

Make = Callable[[int, int], Tensor]
"""From (first, end) to a new tensor of those blocks."""


class Source:
    """Gives blocks [blocks, C, H, W, L] once more (see `fedsparse.ops.kept.Kept`): makes them, or has kept them.

    Of a tensor [B, C, H, W] whose images stand innermost likewise, but that it is always made whole (no `splits`).

    convolutions: how many are run for it; steps: how many norms and additions. splits: whether some blocks can be made
    without the others. exact: whether the bits are those of the forward pass.
    """

    def __init__(
        self,
        like: "Tensor | Source",
        make: Make,
        *before: "Source",
        convolutions: int = 0,
        steps: int = 0,
        splits: bool = True,
        exact: bool = True,
    ) -> None:
        """`like` has the size of the blocks; `before`: what they are made of."""
        self._make = make
        self.shape: torch.Size = like.shape
        self.dtype: torch.dtype = like.dtype
        self.convolutions: int = convolutions + max((s.convolutions for s in before), default=0)
        self.steps: int = steps + sum(s.steps for s in before)
        self.splits: bool = splits and all(s.splits for s in before)
        self.exact: bool = exact and all(s.exact for s in before)
        self.largest: int = max((self.dtype.itemsize * self.shape.numel(), *(s.largest for s in before)))
        self._stays = convolutions > 0
        self._lent: Tensor | None = None

    @classmethod
    def of(cls, kept: Tensor) -> "Source":
        """A tensor that is kept as it is."""
        return _Whole(kept)

    def parts(self) -> list[tuple[int, int]]:
        """Of about `ops.kept.PART` bytes of the largest tensor on the way."""
        return parts_of(self.shape[0], self.largest) if self.splits else [(0, self.shape[0])]

    @property
    def whole(self) -> bool:
        """Whether it is a tensor that is kept as it is."""
        return False

    @property
    def cheap(self) -> bool:
        """Whether it takes at most one convolution and `STEPS` norms and additions."""
        return self.convolutions <= 1 and self.steps <= STEPS

    @property
    def fresh(self) -> bool:
        """Whether `part` gives a tensor that nobody else has."""
        return not self._stays

    def part(self, first: int, end: int) -> Tensor:
        """Some blocks; what a convolution makes is made whole, since it is asked for by the rest soon."""
        if self._stays:
            return self.get()[first:end]
        with torch.no_grad():
            return self._make(first, end)

    def get(self) -> Tensor:
        """All blocks; where a convolution makes them they stay until they are taken."""
        if self._lent is not None:
            return self._lent
        made = self._made()
        if self._stays:
            self._lent = made
        return made

    def take(self) -> tuple[Tensor, bool]:
        """All blocks, for the caller to overwrite."""
        made, self._lent = self.get(), None
        return made, True

    def then(self, like: Tensor, function: Callable[[Tensor], Tensor]) -> "Source":
        """A function of blocks, block by block, that makes a new tensor; of the size of `like`."""
        return Source(like, lambda first, end: function(self.part(first, end)), self)

    def _made(self) -> Tensor:
        parts = self.parts()
        with torch.no_grad():
            if len(parts) == 1:
                return self._make(0, self.shape[0])
            made = torch.empty(self.shape, dtype=self.dtype)
            for first, end in parts:
                made[first:end] = self._make(first, end)
            return made


class _Whole(Source):
    """A tensor that is kept."""

    def __init__(self, kept: Tensor) -> None:
        # No function of this object: a cycle would keep the tensor until the next garbage collection.
        super().__init__(kept, _never)
        self._kept: Tensor | None = kept.detach()

    @property
    def whole(self) -> bool:
        """Yes."""
        return True

    @property
    def fresh(self) -> bool:
        """No: parts are of the tensor itself."""
        return False

    def part(self, first: int, end: int) -> Tensor:
        """A view of some blocks."""
        return self.get()[first:end]

    def get(self) -> Tensor:
        """The tensor."""
        if self._kept is None:
            raise RuntimeError(
                "an activation was asked for after the backward pass that freed it; give that pass retain_graph=True"
            )
        return self._kept

    def take(self) -> tuple[Tensor, bool]:
        """The tensor, for the caller to overwrite where this backward pass is the last and nobody else holds it."""
        kept = self.get()
        alone = torch._C._storage_Use_Count(kept.untyped_storage()._cdata) <= 2
        if not (is_last() and alone and kept.is_contiguous()):
            return kept, False
        self._kept = None
        return kept, True


def _never(first: int, end: int) -> Tensor:
    raise AssertionError("a tensor that is kept is not made")


@contextmanager
def saved_as(x: Tensor, get: Callable[[], Tensor]) -> Iterator[None]:
    """Within the context autograd keeps, in the place of x, only how to get it; other tensors as they are.

    RuntimeError where nothing keeps x in the context, or in the backward pass where one of the others was changed.
    """
    place, met = (x.data_ptr(), x.shape, x.dtype), False

    def pack(saved: Tensor) -> Any:
        nonlocal met
        if (saved.data_ptr(), saved.shape, saved.dtype) == place:
            met = True
            return get
        return saved, saved._version

    with saved_tensors_hooks(pack, _unpack):
        yield
    if not met and x.numel():
        raise RuntimeError("the layer does not keep its input for the backward pass, so the input cannot be pruned")


def _unpack(saved: Any) -> Tensor:
    if not isinstance(saved, tuple):
        return saved()
    tensor, version = saved
    unchanged(tensor, version)
    return tensor


def unchanged(tensor: Tensor, version: int) -> None:
    """RuntimeError where a tensor is no more what it was at that version."""
    if tensor._version != version:
        raise RuntimeError("a tensor that the backward pass needs was changed in place after the forward pass")
