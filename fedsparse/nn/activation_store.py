"""What a backward pass needs of activations, and no more.

A convolution keeps its input packed (`pruned_saves`), ReLU and ReLU6 a bit an element (`BitReLU`), max pooling a byte
an output (`ByteMaxPool2d`), average pooling nothing (`BareAdaptiveAvgPool2d`). They belong together: torch's own ReLU
and pooling keep the very tensor that the convolution after them keeps packed, and so would keep it a second time.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from fedsparse import ops
from fedsparse.nn.innermost import Innermost, innermost, made_by, remember
from fedsparse.nn.kept import Source, saved_as
from fedsparse.ops.algebra import autocast

BYTE = 256
MOST = 0.8
"""Share of entries that are not 0 above which leaving out zeros does not pay."""


class Store(NamedTuple):
    """How a convolution keeps its input.

    share: of each sample the share of entries of largest magnitude that is kept, in (0, 1]; 1 loses nothing.
    bfloat16: whether float32 values are kept as bfloat16.
    """

    share: float
    bfloat16: bool = False


class _Seen(NamedTuple):
    version: int
    store: Store
    packed: "weakref.ref[ops.PackedActivation]"


_seen = WeakTensorKeyDictionary()


def as_kept(x: Tensor, store: Store) -> Tensor:
    """x as it is packed: in autocast's dtype and contiguous, or with images innermost where nothing is pruned."""
    (x,) = autocast(x)
    return x if store.share == 1 and isinstance(x, Innermost) else x.contiguous()


def packed(x: Tensor, store: Store, images: int | None = None) -> ops.PackedActivation:
    """`x` [B, ...], as `as_kept` has it, packed; layers that share an input share the copy while one of them holds it.

    With `images`, x are blocks of that many images, [blocks, C, H, W, L], and each image is a sample.
    """
    seen = _seen.get(x)
    if seen is not None and (seen.version, seen.store) == (x._version, store):
        found = seen.packed()
        if found is not None:
            return found
    made = ops.pack_activation(x, store.share, store.bfloat16, images)
    _seen[x] = _Seen(x._version, store, weakref.ref(made))
    return made


def source_of(x: Tensor, store: Store) -> Source:
    """How the backward pass gets x, as `as_kept` has it.

    Where nothing may be lost: what is known to make an Innermost again cheaply is taken, and one that nothing makes is
    known from then on by what is kept of it. Else it is kept packed, or as it is where too few of its entries are 0.
    """
    lossless = store.share == 1 and not store.bfloat16
    known = made_by(x) if lossless else None
    if known is not None and known.cheap:
        return known
    if lossless and int(x.count_nonzero()) > MOST * x.numel():
        source = Source.of(x.as_subclass(Tensor) if isinstance(x, Innermost) else x)
    else:
        source = Source(x, packed(x, store).unpack, splits=False, exact=lossless)
    if lossless:
        remember(x, source)
    return source


@contextmanager
def pruned_saves(x: Tensor, store: Store) -> Iterator[tuple[Tensor, Source]]:
    """x as `as_kept` has it, an ordinary tensor, and its `source_of`: within the context autograd keeps x so.

    RuntimeError where nothing in the context keeps it: then it would be kept in a form that this does not know.
    """
    x = as_kept(x, store)
    plain, source = x.as_subclass(Tensor) if isinstance(x, Innermost) else x, source_of(x, store)
    with nullcontext() if source.whole else saved_as(plain, source.get):
        yield plain, source


class BitReLU(nn.ReLU):
    """ReLU that keeps one bit an element."""

    lean = True

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        if not self.lean or not isinstance(x, Tensor):  # blocks have their own
            return super().forward(x)
        return _as(x, ops.relu(x, self.inplace))


class BitReLU6(nn.ReLU6):
    """ReLU6 that keeps one bit an element."""

    lean = True

    def forward(self, x: Tensor) -> Tensor:
        """min(max(x, 0), 6)."""
        if not self.lean or not isinstance(x, Tensor):
            return functional.relu6(x, self.inplace)
        return _as(x, ops.relu(x, self.inplace, limit=6.0))


def _as(x: Tensor, y: Tensor) -> Tensor:
    """y, as an Innermost where x is one."""
    return innermost(y) if isinstance(x, Innermost) else y


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple[Any, ...]) -> Tensor:
        kernel, stride, padding, dilation, ceil_mode = settings
        y, index = functional.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
        if ctx.needs_input_grad[0]:
            ctx.shape, ctx.settings = x.shape, settings
            corners, steps = _window(ctx.shape, y.shape, settings, x.device)
            place_of = torch.zeros(int(steps[-1]) + 1, dtype=torch.uint8, device=x.device)
            place_of[steps] = torch.arange(len(steps), dtype=torch.uint8, device=x.device)
            ctx.save_for_backward(place_of[index - corners])
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        corners, steps = _window(ctx.shape, gy.shape, ctx.settings, gy.device)
        # Only the shape of the input matters to this op.
        x = gy.new_empty(1).expand(ctx.shape)
        gx = torch.ops.aten.max_pool2d_with_indices_backward(gy, x, *ctx.settings, corners + steps[place.long()])
        return gx, None


def _window(
    shape: torch.Size, output: torch.Size, settings: tuple[Any, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Flat place in the input plane: of each output's window [H', W'], and of each place of a window from there."""
    kernel, stride, padding, dilation, _ = settings
    starts = [torch.arange(output[i + 2], device=device) * stride[i] - padding[i] for i in (0, 1)]
    steps = [torch.arange(kernel[i], device=device) * dilation[i] for i in (0, 1)]
    corners, places = ((pair[0][:, None] * shape[3] + pair[1]) for pair in (starts, steps))
    return corners, places.flatten()


class ByteMaxPool2d(nn.MaxPool2d):
    """Max pooling that keeps, for each output, its place in the window: one byte. Windows of up to 256 places."""

    lean = True

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]."""
        if not self.lean or not isinstance(x, Tensor):
            return super().forward(x)
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        return _MaxPool.apply(x, (*(_pair(size) for size in sizes), self.ceil_mode))


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Any) -> Tensor:
        ctx.shape = x.shape
        return functional.adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        return torch.ops.aten._adaptive_avg_pool2d_backward(gy, gy.new_empty(1).expand(ctx.shape)), None


class BareAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling that keeps no tensor."""

    lean = True

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]."""
        if not self.lean or not isinstance(x, Tensor):
            return super().forward(x)
        return _AveragePool.apply(x, self.output_size)


Lean = BitReLU | BitReLU6 | ByteMaxPool2d | BareAdaptiveAvgPool2d
"""Modules that with `lean` false do as torch's."""


def keep_bits(model: nn.Module) -> nn.Module:
    """Replace ReLU, ReLU6 and pooling modules, in place, by those of this file; return the model.

    Functional calls (`torch.relu` in a forward method) and pooling that returns indices stay.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if (lean := _lean(child)) is not None:
                setattr(module, name, lean.train(child.training))
    return model


def _lean(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.ReLU:
        return BitReLU(module.inplace)
    if type(module) is nn.ReLU6:
        return BitReLU6(module.inplace)
    if type(module) is nn.AdaptiveAvgPool2d:
        return BareAdaptiveAvgPool2d(module.output_size)
    if type(module) is nn.MaxPool2d and not module.return_indices:
        high, wide = _pair(module.kernel_size)
        if high * wide <= BYTE:
            return ByteMaxPool2d(
                module.kernel_size, module.stride, module.padding, module.dilation, ceil_mode=module.ceil_mode
            )
    return None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
