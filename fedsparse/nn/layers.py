"""The sparse layers: linear and convolution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn.activation_store import as_kept, packed, pruned_saves, source_of
from fedsparse.nn.innermost import Innermost, innermost, remember
from fedsparse.nn.kept import Source
from fedsparse.nn.level import DENSE, Level
from fedsparse.nn.region import Blocked, admits, as_tensor, enter
from fedsparse.nn.sparse_layer import SparseLayer, fill
from fedsparse.nn.stand_in import StandIn
from fedsparse.ops.blocked import from_blocked
from fedsparse.ops.blocked_conv2d import blocked_conv2d, conv2d_again, runs_in_parts
from fedsparse.ops.dispatch import is_measuring
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

CHEAP = 8
"""Active weights of a filter up to which computing an output again is about as fast as reading one that was kept."""


class SparseLinear(SparseLayer):
    """y = x W^T + b with W [N, C] stored at its active weights. x: [..., C] float32 or float64; y: [..., N]."""

    @classmethod
    def from_dense(cls, linear: nn.Linear, topology: Topology) -> "SparseLinear":
        """Keep the active weights of a dense layer."""
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(
            topology.to(linear.weight.device),
            topology.to(linear.weight.device).pack(linear.weight.detach()),
            bias,
        )

    def to_dense(self) -> nn.Linear:
        """The equal nn.Linear with explicit zeros."""
        rows, columns = self.weight_shape
        dense = nn.Linear(columns, rows, bias=self.bias is not None, device=self.values.device, dtype=self.values.dtype)
        return fill(dense, self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; differentiable in x, values and bias."""
        flat = x.reshape(-1, x.shape[-1])
        self.seen = (flat.shape[0], 1, 1)
        y = ops.spmm(self.values, self.topology, flat).reshape(*x.shape[:-1], self.weight_shape[0])
        return y if self.bias is None else y + self.bias.to(y.dtype)


class SparseConv2d(SparseLayer):
    """Cross-correlation with a weight [N, C, kh, kw] stored at its active weights. x: [B, C, H, W]; groups = 1.

    With `region` the output may stay in blocks of images (see `fedsparse.nn.region`), or on a GPU have its images
    innermost (see `fedsparse.nn.innermost`); `left` names the functions of torch for which it had to become an ordinary
    tensor, `fused` what ran in one kernel with a norm of it on a GPU. level: what is kept for the backward pass, of the
    input and of the input of a norm that follows (`keep_activations`).
    """

    level: Level = DENSE

    def __init__(
        self,
        topology: Topology,
        values: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(topology, values, bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.region = False
        self.blocked = False  # whether the last output stayed in blocks
        self.left: set[str] = set()
        self.fused: set[str] = set()

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, topology: Topology) -> "SparseConv2d":
        """Keep the active weights of a dense layer; its groups must be 1 and its padding numeric zeros."""
        if conv.groups != 1:
            raise ValueError(f"groups is {conv.groups}, but a sparse convolution has groups = 1")
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(
                f"padding is {conv.padding!r} ({conv.padding_mode}), but a sparse convolution pads a number of zeros"
            )
        topology = topology.to(conv.weight.device)
        bias = None if conv.bias is None else conv.bias.detach()
        values = topology.pack(conv.weight.detach())
        stride, padding, dilation = _pair(conv.stride), _pair(conv.padding), _pair(conv.dilation)
        return cls(topology, values, bias, stride, padding, dilation)

    def to_dense(self) -> nn.Conv2d:
        """The equal nn.Conv2d with explicit zeros."""
        rows, channels, height, width = self.weight_shape
        dense = nn.Conv2d(
            channels,
            rows,
            (height, width),
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        return fill(dense, self)

    def used(self) -> Tensor:
        """The values [nnz] that the convolution is made with."""
        return self.values

    def forward(self, x: Any) -> Any:
        """Apply the layer, from Tensor or Blocked to Tensor or Blocked; differentiable in x and all parameters."""
        shape = x.shape
        seen, blocked = (shape[0], shape[2], shape[3]), self.region and admits(x, self.values)
        if (seen, blocked) != (self.seen, self.blocked):  # a module's attributes are slow to set
            self.seen, self.blocked = seen, blocked
        if blocked:
            return self._in_blocks(enter(x, self))
        values, store = self.used(), self.level.store
        sizes = (self.stride, self.padding, self.dilation)
        if store is None or not (torch.is_grad_enabled() and values.requires_grad):
            return self._innermost(ops.conv2d(values, self.topology, as_tensor(x), self.bias, *sizes))
        with pruned_saves(x.tensor() if isinstance(x, StandIn) else x, store) as (plain, kept):
            y = self._innermost(ops.conv2d(values, self.topology, plain, self.bias, *sizes))
        if self.level.name == "recompute" and isinstance(y, Innermost):
            remember(y, self._made_again(values, plain, kept, y))
        return y

    def _innermost(self, y: Tensor) -> Tensor:
        return innermost(y, self.fused, self.level.halves) if self.region else y

    def _made_again(self, values: Tensor, x: Tensor, kept: Source, y: Tensor) -> Source:
        """How to get y, whose images stand innermost, once more: made of x, or kept where x takes a convolution."""
        if kept.convolutions or is_measuring():
            return Source.of(y.as_subclass(Tensor))
        sizes = (self.stride, self.padding, self.dilation)
        again = ops.conv2d_again(values, self.topology, x, self.bias, *sizes)
        return Source(y, lambda first, end: again(kept.get()), kept, convolutions=1, splits=False)

    def _in_blocks(self, x: Blocked) -> Blocked:
        values = self.used()
        kept = self._kept(x) if torch.is_grad_enabled() and values.requires_grad else None
        sizes = (self.stride, self.padding, self.dilation)
        y = blocked_conv2d(values, self.topology, x.blocks, x.batch, self.bias, *sizes, kept)
        return Blocked(self, x.batch, y, source=None if kept is None else self._again(values, x, kept, y))

    def _kept(self, x: Blocked) -> Source | None:
        """How the layer keeps an input in blocks; None: as it is."""
        if self.level.keeps_all:
            return None
        if self.level.name != "pruned":
            return x.kept()
        assert self.level.store is not None
        unpack = packed(x.blocks, self.level.store, x.batch).unpack
        return Source(x.blocks, unpack, exact=False)

    def _again(self, used: Tensor, x: Blocked, kept: Source, y: Tensor) -> Source | None:
        """How to make the output y again; None where what is kept of the input is not the input."""
        if self.level.name == "pruned":
            return None
        values, version, bias, index = self.values, self.values._version, self.bias, Index.of(self.topology)
        geometry = (self.topology.kernel, self.stride, self.padding, self.dilation)
        used = used.detach()

        def make(first: int, end: int) -> Tensor:
            if values._version != version:
                raise RuntimeError("a sparse weight was changed in place between the forward and the backward pass")
            return conv2d_again(used, index, kept.part(first, end), bias, geometry, x_batch)

        x_batch = x.batch
        cheap = self.topology.nnz <= CHEAP * self.weight_shape[0]
        splits = runs_in_parts("product", index, x.blocks, x.batch, geometry)
        return Source(y, make, kept, convolutions=int(not cheap), splits=splits)

    def keep_input(self, x: Any) -> Callable[[], Tensor]:
        """What the layer keeps of the input, the same that its forward pass keeps."""
        store = self.level.store
        if store is None:
            return super().keep_input(x)
        if not isinstance(x, Blocked):
            return source_of(as_kept(x.tensor() if isinstance(x, StandIn) else x, store), store).get
        kept, batch = self._kept(x), x.batch
        assert kept is not None
        return lambda: from_blocked(kept.get(), batch)

    @property
    def family(self) -> str:
        """As SparseLayer's."""
        return "blocked_conv2d" if self.blocked else "conv2d"

    def geometry(self) -> dict[str, tuple[int, int]]:
        """Stride, padding and dilation, as the layer's ops take them."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def extra_repr(self) -> str:
        """As SparseLayer's, with the geometry."""
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    first, second = sizes
    return first, second
