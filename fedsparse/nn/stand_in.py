"""Objects that stand in the place of a tensor [B, C, H, W] between layers, so that what follows can run with them.

torch's functions find them by `__torch_function__`; one that has no form of its own for them gets the ordinary tensor.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

Handler = Callable[..., Any]


class StandIn:
    """No Tensor; what it does not do itself it does as the Tensor it stands for (`tensor`).

    handlers: torch's functions that have a form of their own; a handler returns NotImplemented for arguments that it
    has none for.
    """

    handlers: ClassVar[dict[Any, Handler]]
    dtype: torch.dtype
    layout = torch.strided

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        raise NotImplementedError

    def tensor(self) -> Tensor:
        """The tensor [B, C, H, W]; gradients flow back through it."""
        raise NotImplementedError

    def leave(self, name: str) -> Tensor:
        """The tensor, for a function of that name that has no form of its own."""
        raise NotImplementedError

    def become(self, other: Any) -> Any:
        """Stand for another tensor of the same shape from now on, StandIn or Tensor: an operation in place."""
        raise NotImplementedError

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one size of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """4."""
        return 4

    def numel(self) -> int:
        """B * C * H * W."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Always."""
        return True

    ndim = property(dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __getattr__(self, name: str) -> Any:
        """An attribute or method of the tensor."""
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(Tensor, name)
        if not callable(found):
            return getattr(self.leave(name), name)
        return lambda *args, **kwargs: self._dispatch(found, (self, *args), kwargs)

    @classmethod
    def _dispatch(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch on arguments of which some are StandIns."""
        handler = cls.handlers.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _outside(func, args, kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return cls._dispatch(func, args, kwargs or {})


Left = dict[int, tuple[StandIn, Tensor]]


def _outside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function on ordinary tensors; a StandIn that it changes in place changes too.

    What it returns is no view of the StandIn: writing to a slice of it (`y[:, 0].mul_(2)`) does not change y.
    """
    name = getattr(func, "__name__", str(func)).strip("_")
    left: Left = {}
    keywords = {key: _out(value, name, left) for key, value in kwargs.items()}
    values = [_out(x, name, left) for x in args]
    versions = {id(tensor): tensor._version for _, tensor in left.values()}
    result = func(*values, **keywords)
    for stand_in, tensor in left.values():
        if result is tensor or tensor._version != versions[id(tensor)]:
            stand_in.become(tensor)
    return result


def _out(x: Any, name: str, left: Left) -> Any:
    if isinstance(x, StandIn):
        return left.setdefault(id(x), (x, x.leave(name)))[1]
    if isinstance(x, list | tuple) and any(isinstance(y, StandIn) for y in x):
        return type(x)([_out(y, name, left) for y in x])
    return x


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)

    def method(self: StandIn, *args: Any) -> Any:
        return self._dispatch(function, (self, *args), {})

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_OTHER = ("neg", "abs", "pos", "lt", "le", "gt", "ge", "eq", "ne", "getitem", "setitem", "bool", "float", "iter")
for _name in (*_OTHER, *_BINARY, *(f"r{n}" for n in _BINARY), *(f"i{n}" for n in _BINARY)):
    if hasattr(Tensor, f"__{_name}__"):
        setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
StandIn.__hash__ = object.__hash__  # type: ignore[method-assign]
