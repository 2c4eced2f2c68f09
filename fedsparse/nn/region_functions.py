"""torch's functions on Blocked: which have a blocked form, and for which arguments; norms in `region_norms`."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse import ops
from fedsparse.nn.region import HANDLERS, Blocked, handles
from fedsparse.ops import blocked_pool
from fedsparse.ops.blocked import to_blocked


@handles(torch.relu, F.relu, Tensor.relu)
def _relu(x: Blocked, inplace: bool = False) -> Any:
    return x.become(x.relu(inplace=True)) if inplace else x.relu()


@handles(torch.relu_, Tensor.relu_)
def _relu_in_place(x: Blocked) -> Any:
    return x.become(x.relu())


def _elementwise(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Functions that change each entry by itself run on the blocks as they are."""
    if not isinstance(x, Blocked) or any(isinstance(a, Tensor | Blocked) for a in (*args, *kwargs.values())):
        return NotImplemented
    inplace = bool(kwargs.pop("inplace", False))
    result = x.with_blocks(function(x.blocks, *args, **kwargs))
    return x.become(result) if inplace else result


for _function in (F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, F.hardtanh, torch.tanh, torch.sigmoid):
    HANDLERS[_function] = partial(_elementwise, _function)


@handles(F.relu6)
def _relu6(x: Blocked, inplace: bool = False) -> Blocked:
    if x.member.level.keeps_all:
        result = x.with_blocks(F.relu6(x.blocks))
    else:
        source = None if x.source is None else x.source.then(x.blocks, F.relu6)
        result = Blocked(x.member, x.batch, ops.relu(x.blocks, limit=6.0), source=source, rectified=True)
    return x.become(result) if inplace else result


def _with_number(function: Any, x: Any, other: Any, **options: Any) -> Any:
    """A number with each entry; sums of two tensors are `_sum`."""
    if isinstance(x, Blocked) and isinstance(other, int | float) and not options:
        return x.with_blocks(function(x.blocks, other))
    return NotImplemented


_ARITHMETIC: tuple[Any, ...] = (
    *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
    *(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__),
    *(torch.div, Tensor.div, Tensor.__truediv__, Tensor.__rtruediv__),
)
for _operation in _ARITHMETIC:
    HANDLERS[_operation] = partial(_with_number, _operation)


@handles(F.dropout, F.dropout2d)
def _dropout(x: Blocked, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    # The random numbers must be those of the tensor's own order.
    return x if not training or p == 0 else NotImplemented


def _addend(x: Blocked, other: Any) -> Blocked | None:
    """The other operand of a sum as a Blocked of the same shape, or None."""
    if not isinstance(other, Blocked | Tensor) or other.shape != x.shape or other.dtype != x.dtype:
        return None
    return other if isinstance(other, Blocked) else x.with_blocks(to_blocked(other))


def _sum(x: Any, other: Any, alpha: Any) -> Any:
    x, other = (x, other) if isinstance(x, Blocked) else (other, x)
    if isinstance(other, int | float) and alpha == 1:
        return x.with_blocks(x.blocks + other)
    addend = _addend(x, other)
    return NotImplemented if alpha != 1 or addend is None else x.plus(addend)


@handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(x: Any, other: Any, *, alpha: Any = 1) -> Any:
    return _sum(x, other, alpha)


@handles(Tensor.add_, Tensor.__iadd__)
def _add_in_place(x: Any, other: Any, *, alpha: Any = 1) -> Any:
    result = _sum(x, other, alpha) if isinstance(x, Blocked) else NotImplemented
    return result if result is NotImplemented else x.become(result)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def _windows(x: Blocked, kernel: Any, stride: Any, padding: Any) -> blocked_pool.Windows | None:
    """The windows of a sliding kernel, or None where torch's own op has something to say about them."""
    kernel = _pair(kernel)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    padding = _pair(padding)
    size = (x.shape[2], x.shape[3])
    if min(stride) < 1 or any(2 * p > k or p < 0 or n + 2 * p < k for n, k, p in zip(size, kernel, padding)):
        return None
    return blocked_pool.sliding_windows(size, kernel, stride, padding)


@handles(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    x: Blocked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    windows = _windows(x, kernel_size, stride, padding)
    if ceil_mode or return_indices or _pair(dilation) != (1, 1) or windows is None or windows.largest > 256:
        return NotImplemented
    return x.with_blocks(blocked_pool.blocked_max(x.blocks, windows))


@handles(F.avg_pool2d)
def _avg_pool2d(
    x: Blocked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    windows = _windows(x, kernel_size, stride, padding)
    if ceil_mode or windows is None:
        return NotImplemented
    high, wide = _pair(kernel_size)
    divisor = divisor_override or (high * wide if count_include_pad else 0)
    return x.with_blocks(blocked_pool.blocked_average(x.blocks, windows, float(divisor)))


@handles(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Blocked, output_size: Any) -> Any:
    size = (x.shape[2], x.shape[3])
    sizes = (output_size, output_size) if isinstance(output_size, int) else output_size
    out = tuple(n if wish is None else wish for n, wish in zip(size, sizes))
    if len(out) != 2 or min(out) < 1 or min(size) < 1:
        return NotImplemented
    windows = blocked_pool.adaptive_windows(size, (out[0], out[1]))
    return x.with_blocks(blocked_pool.blocked_average(x.blocks, windows))


@handles(torch.mean, Tensor.mean)
def _mean(x: Blocked, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Over all pixels: global average pooling as some models write it."""
    if dtype is not None or not isinstance(dim, tuple | list) or sorted(d % 4 for d in dim) != [2, 3]:
        return NotImplemented
    pooled = _adaptive_avg_pool2d(x, 1)
    return pooled if keepdim or pooled is NotImplemented else pooled.tensor().flatten(1)


@handles(torch.flatten, Tensor.flatten)
def _flatten(x: Blocked, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return x.tensor().flatten(start_dim, end_dim)


@handles(Tensor.view, Tensor.reshape, torch.reshape)
def _view(x: Blocked, *shape: Any) -> Tensor:
    return x.tensor().view(*shape)


@handles(Tensor.contiguous)
def _contiguous(x: Blocked, memory_format: torch.memory_format = torch.contiguous_format) -> Blocked:
    return x


@handles(Tensor.__getitem__)
def _getitem(x: Blocked, index: Any) -> Any:
    """Slices of channels and pixels, all images: x[:, a:b, ::2, ::2]."""
    if not isinstance(index, tuple) or not all(isinstance(i, slice) for i in index) or not 0 < len(index) <= 4:
        return NotImplemented
    if index[0] != slice(None):
        return NotImplemented
    return x.moved(lambda blocks: blocks[index].contiguous())


@handles(F.pad)
def _pad(x: Blocked, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """Constants around pixels and channels."""
    if mode != "constant" or len(pad) not in (2, 4, 6):
        return NotImplemented
    return x.moved(lambda blocks: F.pad(blocks, (0, 0, *pad), value=value))


@handles(torch.cat)
def _cat(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    """Along the channels."""
    first = next(t for t in tensors if isinstance(t, Blocked))
    if kwargs or dim % 4 != 1 or any(t.dim() != 4 or t.dtype != first.dtype for t in tensors):
        return NotImplemented
    if any((t.shape[0], *t.shape[2:]) != (first.shape[0], *first.shape[2:]) for t in tensors):
        return NotImplemented
    return first.with_blocks(torch.cat([t.blocks if isinstance(t, Blocked) else to_blocked(t) for t in tensors], 1))


@handles(torch.chunk, Tensor.chunk)
def _chunk(x: Blocked, chunks: int, dim: int = 0) -> Any:
    """Along the channels."""
    if dim % 4 != 1:
        return NotImplemented
    return tuple(x.with_blocks(part.contiguous()) for part in x.blocks.chunk(chunks, 1))
