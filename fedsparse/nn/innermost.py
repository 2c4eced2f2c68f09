"""Tensors on a GPU whose images stand innermost in memory, between sparse convolutions.

The Triton convolutions take and give such tensors without a copy. Elementwise functions of torch keep the layout; norms
would not: `Innermost` is a Tensor whose norms are those of `ops.innermost_norm` and `ops.innermost_group_norm`, and an
ordinary one in all else. What a function returns is an Innermost again where it has that layout. A norm waits for the
addition and the ReLU that follow it (`Waiting`), so that the three run as one kernel and ReLU keeps one bit an element.
The model's output is made an ordinary tensor by the hook of `fedsparse.nn.region`.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse import ops
from fedsparse.nn.kept import Source, saved_as, unchanged
from fedsparse.nn.stand_in import Handler, StandIn

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HANDLERS: dict[Any, Handler] = {}
"""torch's functions that a norm waits for; see `StandIn`."""
Fused = partial[Tensor]
"""A norm that waits: from x, residual and relu to its result; its other arguments are keywords."""


class Innermost(Tensor):
    """x [B, C, H, W] with strides (1, H W B, W B, B).

    Of one that a convolution made, fused: what gets the names of what runs with a norm of it (`SparseConv2d.fused`);
    keeps_half: whether the norm keeps it as bfloat16. source: how the backward pass can have it once more (`made_by`),
    where that is known, at the version `made_at`.
    """

    fused: set[str] | None = None
    keeps_half: bool = False
    source: Source | None = None
    made_at: int = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Norms in the layout, everything else as for a Tensor."""
        if any(issubclass(each, StandIn) for each in types):
            return NotImplemented  # the other one knows what to do
        if func in _NORMS:
            result = _NORMS[func](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return innermost(result) if type(result) is Tensor else result


class Waiting(StandIn):
    """A norm of an Innermost that is still to be run, with what is done now where that is an addition or ReLU.

    fused: gets a name of what ran in one kernel.
    """

    handlers = HANDLERS

    def __init__(self, x: Innermost, norm: Fused, fused: set[str], residual: Tensor | None = None) -> None:
        self._x, self._norm, self._residual, self._fused = x, norm, residual, fused
        self._versions = [each._version for each in self._operands()]
        self._tensor: Tensor | None = None
        self._recorded = torch.is_grad_enabled()
        self.dtype: torch.dtype = x.dtype
        self.device: torch.device = x.device
        self.is_cuda: bool = x.is_cuda

    def _operands(self) -> list[Tensor]:
        return [self._x] if self._residual is None else [self._x, self._residual]

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        return self._x.shape

    @property
    def _waits(self) -> bool:
        """Whether the norm may run with what is done now: under the grad mode in which it was called."""
        return self._tensor is None and self._recorded == torch.is_grad_enabled()

    def _run(self, relu: bool) -> Tensor:
        if [each._version for each in self._operands()] != self._versions:
            raise RuntimeError("what a norm takes was changed in place between the norm and the function after it")
        with torch.set_grad_enabled(self._recorded):
            y = self._normed(relu)
        parts = ("norm", *(("residual",) if self._residual is not None else ()), *(("ReLU",) if relu else ()))
        self._fused.add(" + ".join(parts))
        return y

    def _normed(self, relu: bool) -> Tensor:
        """The norm, which keeps its input as that is known to be made, and how its result is made from that."""
        x, added = self._x.as_subclass(Tensor), self._residual
        source = made_by(self._x) if self._recorded and x.requires_grad and not self._x.keeps_half else None
        if source is None or not source.cheap:
            return innermost(self._norm(x, residual=added, relu=relu))
        with nullcontext() if source.whole else saved_as(x, lambda: source.take()[0]):
            y = innermost(self._norm(x, residual=added, relu=relu))
        before = (source,) if added is None else (source, made_by(added))
        known = [each for each in before if each is not None]
        if len(known) == len(before):
            remember(y, normed(y, self._norm, relu, *known))
        return y

    def tensor(self) -> Tensor:
        """The norm, and the sum with a residual that it took, as a tensor."""
        if self._tensor is None:
            self._tensor = self._run(relu=False)
        return self._tensor

    def leave(self, name: str) -> Tensor:
        """As `tensor`."""
        return self.tensor()

    def relu(self) -> Tensor:
        """max(x, 0), in one kernel with the norm."""
        return self._run(relu=True) if self._waits else torch.relu(self.tensor())

    def plus(self, other: "Waiting | Tensor") -> "Waiting | None":
        """The sum with another of equal shape, dtype and device; None where it cannot run with the norm."""
        alike = (other.shape, other.dtype, other.device) == (self.shape, self.dtype, self.device)
        if not (alike and self._waits and self._residual is None):
            return None
        return Waiting(self._x, self._norm, self._fused, other.tensor() if isinstance(other, Waiting) else other)

    def become(self, other: "Waiting | Tensor") -> "Waiting":
        """Stand for another tensor of the same shape from now on: an operation in place."""
        if isinstance(other, Waiting):
            self.__dict__.update(other.__dict__)
        else:
            self._tensor = other
        return self


def _relu(x: Waiting, inplace: bool = False) -> Any:
    return x.become(x.relu()) if inplace else x.relu()


def _sum(x: Any, other: Any, *, alpha: Any = 1) -> Any:
    """A tensor or a norm that waits with such a norm; the first of two takes the second as its residual."""
    if alpha == 1:
        for norm, rest in ((x, other), (other, x)):
            if isinstance(norm, Waiting) and isinstance(rest, Waiting | Tensor):
                result = norm.plus(rest)
                if result is not None:
                    return result
    return NotImplemented


def _sum_in_place(x: Any, other: Any, *, alpha: Any = 1) -> Any:
    result = _sum(x, other, alpha=alpha) if isinstance(x, Waiting) else NotImplemented
    return result if result is NotImplemented else x.become(result)


HANDLERS.update(dict.fromkeys((torch.relu, F.relu, Tensor.relu), _relu))
HANDLERS.update(dict.fromkeys((torch.relu_, Tensor.relu_), partial(_relu, inplace=True)))
HANDLERS.update(dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum))
HANDLERS.update(dict.fromkeys((Tensor.add_, Tensor.__iadd__), _sum_in_place))


def innermost(x: Tensor, fused: set[str] | None = None, half: bool = False) -> Tensor:
    """x as an Innermost where it has the layout and Triton may run on it, else as it is."""
    if not ops.runs_triton(x.device) or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x
    with torch._C.DisableTorchFunctionSubclass():
        if not ops.stands_innermost(x):
            return x
        y = x.as_subclass(Innermost)
        y.fused, y.keeps_half = fused, half
        return y


def made_by(x: Tensor) -> Source | None:
    """How the backward pass can have x once more; None where that is not known, or where x was changed since."""
    if not isinstance(x, Innermost) or x.source is None:
        return None
    return x.source if x._version == x.made_at else None


def remember(x: Tensor, source: Source) -> None:
    """From now on `made_by` gives this source of x where x is an Innermost; none is known of other tensors."""
    if isinstance(x, Innermost):
        x.source, x.made_at = source, x._version


def normed(y: Tensor, norm: Fused, relu: bool, source: Source, residual: Source | None = None) -> Source:
    """How to make the result of a norm, like y, from its input and the residual."""
    factors = [(each, each._version) for each in norm.keywords.values() if isinstance(each, Tensor)]

    def make(first: int, end: int) -> Tensor:
        for factor, version in factors:
            unchanged(factor, version)
        return norm(source.get(), residual=None if residual is None else residual.get(), relu=relu)

    before = (source,) if residual is None else (source, residual)
    return Source(y, make, *before, steps=1, splits=False)


def _takes(x: Any, *others: Tensor | None) -> bool:
    """Whether dtypes and shapes are such that the kernels say and do what is right, as torch's own norms would."""
    single = all(t is None or t.dtype == torch.float32 for t in others)
    return isinstance(x, Innermost) and x.dtype in _DTYPES and single and ops.stands_innermost(x.as_subclass(Tensor))


def _waiting(x: Innermost, norm: Fused) -> Waiting:
    return Waiting(x, partial(norm, half=x.keeps_half), set() if x.fused is None else x.fused)


def _batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Statistics at once, so that the running ones are right whatever follows; the rest waits."""
    given = training or (running_mean is not None and running_var is not None)
    if not (given and _takes(x, running_mean, running_var, weight, bias) and x.numel() > x.shape[1]):
        return NotImplemented
    mean, variance = ops.innermost_statistics(x.as_subclass(Tensor), running_mean, running_var, training, momentum)
    affine = partial(ops.innermost_normed, weight=weight, bias=bias, training=training, eps=eps)
    return _waiting(x, partial(affine, mean=mean, variance=variance))


def _group_norm(
    x: Any, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Any:
    if not _takes(x, weight, bias) or num_groups < 1 or x.shape[1] % num_groups or x.numel() <= len(x) * num_groups:
        return NotImplemented
    return _waiting(x, partial(ops.innermost_group_norm, groups=num_groups, weight=weight, bias=bias, eps=eps))


_NORMS: dict[Any, Handler] = {F.batch_norm: _batch_norm, F.group_norm: _group_norm}
