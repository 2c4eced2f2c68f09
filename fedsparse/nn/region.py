"""The blocked layout as a region of a network.

A sparse convolution on the CPU works on blocks of 16 images (`ops.blocked`). Inside the region its output stays in
blocks: `Blocked` stands for it, and what follows (norm, ReLU, addition, pooling) runs on the blocks too. A norm waits
for the addition and the ReLU that follow it, so that the three run as one kernel. The model is the user's own,
unchanged: torch's functions find `Blocked` by `__torch_function__`; one that has no blocked form gets an ordinary
tensor, and `explain` says at which layer that happened.

`sparsify` marks the sparse convolutions and makes the model's output a tensor again (`leave`, a forward hook).
Not in the region: other devices and dtypes, `torch.compile`, autocast, a forced back end other than "cpu", batches that
would leave more than half of the lanes empty (below 8 images in float32), and, because its ops are once
differentiable, whatever needs a second derivative: for that, `use_region(False)`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.nn.activation_store import Store, packed
from fedsparse.nn.innermost import Innermost
from fedsparse.nn.kept import Source
from fedsparse.nn.level import Level
from fedsparse.nn.stand_in import Handler, StandIn
from fedsparse.ops.blocked import LANES, from_blocked, to_blocked

_wish: bool | None = None


@contextmanager
def use_region(wanted: bool) -> Iterator[None]:
    """Within the context no layer keeps the blocked layout, or every marked one does, however small the batch."""
    global _wish
    before, _wish = _wish, wanted
    try:
        yield
    finally:
        _wish = before


LOSSLESS = Store(1.0)


class Member(Protocol):
    """A layer of the region: `left` names the functions that its output left the region for; `level`: what is kept."""

    left: set[str]
    level: Level


HANDLERS: dict[Any, Handler] = {}
"""torch's functions that have a blocked form; see `StandIn`."""
Fused = Callable[["Blocked | None", bool], tuple[Tensor, Source | None]]
"""A norm that waits: from (residual, relu) to its result, blocked, and how the backward pass gets that once more."""


class Blocked(StandIn):
    """A tensor [B, C, H, W] held as blocks [ceil(B / L), C, H, W, L], or as a norm that is still to be run.

    source: how the backward pass can have the blocks without their being kept; None where it cannot. rectified: an
    output of ReLU.
    """

    handlers = HANDLERS

    def __init__(
        self,
        member: Member,
        batch: int,
        blocks: Tensor | None = None,
        *,
        norm: Fused | None = None,
        residual: "Blocked | None" = None,
        like: "Blocked | None" = None,
        source: Source | None = None,
        rectified: bool = False,
    ) -> None:
        self.member, self.batch, self.source, self.rectified = member, batch, source, rectified
        self._blocks, self._norm, self._residual = blocks, norm, residual
        self._recorded = torch.is_grad_enabled()
        known: Any = blocks if like is None else like
        self.dtype: torch.dtype = known.dtype
        self._shape: torch.Size = known.shape if like is None else like._shape

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        return torch.Size((self.batch, *self._shape[1:4]))

    @property
    def blocks(self) -> Tensor:
        """The blocks; runs a norm that waits."""
        if self._blocks is None:
            self._blocks, self.source = self._run(relu=False)
            self._norm = self._residual = None
        return self._blocks

    def _run(self, relu: bool) -> tuple[Tensor, Source | None]:
        assert self._norm is not None
        with torch.set_grad_enabled(self._recorded):
            return self._norm(self._residual, relu)

    def kept(self) -> Source:
        """How the backward pass gets the blocks, the same for all that ask.

        They are made again where that takes at most one convolution and a few norms; else outputs of ReLU are kept
        without their zeros, and others as they are.
        """
        blocks, source = self.blocks, self.source
        if source is None or not source.cheap:
            source = Source(blocks, packed(blocks, LOSSLESS).unpack) if self.rectified else Source.of(blocks)
        self.source = source
        return source

    @property
    def _waits(self) -> bool:
        """Whether a norm waits that may run with what is done now: under the grad mode in which it was called."""
        return self._blocks is None and self._recorded == torch.is_grad_enabled()

    def relu(self, inplace: bool = False) -> "Blocked":
        """max(x, 0), in one kernel with a norm that waits; `inplace` is a wish."""
        if self._waits:
            blocks, source = self._run(relu=True)
        elif self.member.level.keeps_all:
            blocks, source = torch.relu(self.blocks), None
        else:
            # At the other levels the backward pass may make something from the blocks as they are.
            alone = self.source is None and self.member.level.name == "pruned"
            blocks = ops.relu(self.blocks, inplace and alone)
            source = None if self.source is None else self.source.then(blocks, torch.relu)
        return Blocked(self.member, self.batch, blocks, source=source, rectified=True)

    def plus(self, other: "Blocked") -> "Blocked":
        """The sum of two of equal shape; a norm that waits takes the other as its residual."""
        for norm, rest in ((self, other), (other, self)):
            if norm._waits and norm._residual is None:
                return Blocked(self.member, self.batch, norm=norm._norm, residual=rest, like=self)
        return self.with_blocks(self.blocks + other.blocks)

    def with_blocks(self, blocks: Tensor, source: Source | None = None) -> "Blocked":
        """Other blocks of the same images."""
        return Blocked(self.member, self.batch, blocks, source=source)

    def moved(self, function: Callable[[Tensor], Tensor]) -> "Blocked":
        """A function of the blocks that only moves, leaves out or adds constant entries."""
        blocks = function(self.blocks)
        return self.with_blocks(blocks, None if self.source is None else self.source.then(blocks, function))

    def become(self, other: "Blocked | Tensor") -> "Blocked":
        """Stand for another tensor of the same shape from now on: an operation in place."""
        if isinstance(other, Tensor):
            other = self.with_blocks(to_blocked(other))
        self._blocks, self._norm, self._residual = other._blocks, other._norm, other._residual
        self._recorded, self.source, self.rectified = other._recorded, other.source, other.rectified
        return self

    def tensor(self) -> Tensor:
        """The tensor [B, C, H, W]; gradients flow back into the blocks."""
        return from_blocked(self.blocks, self.batch)

    def leave(self, name: str) -> Tensor:
        """The tensor, and a note that `name` has no blocked form."""
        self.member.left.add(name)
        return self.tensor()

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Any:
        """As Tensor.register_hook: the hook gets the gradient [B, C, H, W] and may return another."""

        # A hook that held self would keep the whole graph alive until the next garbage collection.
        batch = self.batch

        def on_blocks(gradient: Tensor) -> Tensor | None:
            changed = hook(from_blocked(gradient, batch))
            return None if changed is None else to_blocked(changed)

        return self.blocks.register_hook(on_blocks)

    def detach(self) -> "Blocked":
        """The same blocks without their history."""
        return self.with_blocks(self.blocks.detach())

    device = torch.device("cpu")
    is_cuda = False

    @property
    def requires_grad(self) -> bool:
        """As the blocks'."""
        return self.blocks.requires_grad

    @property
    def grad_fn(self) -> Any:
        """As the blocks'."""
        return self.blocks.grad_fn


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Register a function as the blocked form of torch's."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def admits(x: Any, values: Tensor) -> bool:
    """Whether a marked layer with these values keeps its output for this input in blocks."""
    if _wish is False or torch.compiler.is_compiling():
        return False
    if isinstance(x, Blocked):
        return x.dtype == values.dtype and ops.active_backend(x.device) == "cpu"
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype != values.dtype or x.dtype not in LANES:
        return False
    if torch.is_autocast_enabled("cpu") or ops.active_backend(x.device) != "cpu":
        return False
    lanes = LANES[x.dtype]
    return x.shape[0] > 0 and (_wish is True or -(-x.shape[0] // lanes) * lanes <= 2 * x.shape[0])


def enter(x: "Blocked | Tensor", member: Member) -> Blocked:
    """An input of a layer of the region."""
    return x if isinstance(x, Blocked) else Blocked(member, x.shape[0], to_blocked(x))


def as_tensor(x: Any) -> Any:
    """A StandIn as the tensor that it stands for, an Innermost as an ordinary tensor, anything else as it is."""
    x = x.tensor() if isinstance(x, StandIn) else x
    return x.as_subclass(Tensor) if isinstance(x, Innermost) else x


def leave(module: Any, inputs: Any, output: Any) -> Any:
    """A forward hook: Blocked in the output, in tuples, lists and dicts too, become tensors."""
    if type(output) is Tensor:
        return None
    return _all_tensors(output)


def _all_tensors(output: Any) -> Any:
    if isinstance(output, StandIn | Innermost):
        return as_tensor(output)
    if type(output) in (list, tuple):
        return type(output)(_all_tensors(x) for x in output)
    if type(output) is dict:
        return {key: _all_tensors(x) for key, x in output.items()}
    return output
