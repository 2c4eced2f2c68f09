"""Layers whose weight exists only where the mask is active.

A sparse layer holds `values`, a Parameter of shape [nnz], and the index arrays of its `Topology` as buffers, so
that `state_dict`, `.to()` and `copy.deepcopy` carry them. `values` keeps its identity when the mask changes: only its
size does, and `set_topology` returns the `Move` by which optimizer state follows.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn.activation_store import as_kept, packed, pruned_saves
from fedsparse.nn.innermost import innermost
from fedsparse.nn.kept import Source
from fedsparse.nn.level import DENSE, Level
from fedsparse.nn.region import Blocked, admits, as_tensor, enter
from fedsparse.nn.stand_in import StandIn
from fedsparse.ops.blocked import from_blocked
from fedsparse.ops.blocked_conv2d import blocked_conv2d, conv2d_again, runs_in_parts
from fedsparse.ops.dispatch import LINEAR, Choice, choose, pass_of
from fedsparse.ops.index import Index
from fedsparse.topology import Memory, Move, Topology

_INDEX_ARRAYS = ("indptr", "cols", "t_indptr", "t_cols", "t_perm")
_PASSES = {"forward": "product", "input gradient": "transposed", "weight gradient": "sampled"}
_Dense = TypeVar("_Dense", nn.Linear, nn.Conv2d)
CHEAP = 8
"""Active weights of a filter up to which computing an output again is about as fast as reading one that was kept."""
_TRANSPOSED = ("t_indptr", "t_cols", "t_perm")


class SparseLayer(nn.Module):
    """What SparseLinear and SparseConv2d share: values [nnz], bias [N] or None, and the topology."""

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, topology: Topology, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if values.shape != (topology.nnz,):
            raise ValueError(
                f"values have shape {tuple(values.shape)}, but the topology has {topology.nnz} active weights"
            )
        self.weight_shape = tuple(topology.shape)
        self.granularity = topology.granularity
        self.seen: tuple[int, int, int] | None = None  # (batch, H, W) of the last input; a linear layer's has 1 x 1
        self.memory: Memory = "fast"
        self._topology: Topology | None = None  # of the buffers as they last were
        self.values = nn.Parameter(values)
        self.bias = None if bias is None else nn.Parameter(bias)
        for name in _INDEX_ARRAYS:
            self.register_buffer(name, None, persistent=name not in _TRANSPOSED)
        self._store(topology)

    @property
    def topology(self) -> Topology:
        """The layer's topology, on the layer's device."""
        arrays: dict[str, Any] = {name: self._buffers[name] for name in _INDEX_ARRAYS}
        known = self._topology
        if known is None or any(getattr(known, name) is not array for name, array in arrays.items()):
            known = self._topology = Topology(self.weight_shape, granularity=self.granularity, **arrays)
        return known

    @torch.no_grad()
    def set_topology(self, new: Topology) -> Move:
        """Change the mask: surviving values stay, grown ones start at 0, pruned ones are gone; `.grad` is dropped."""
        if tuple(new.shape) != self.weight_shape:
            raise ValueError(f"the new topology has shape {tuple(new.shape)}, the layer's weight {self.weight_shape}")
        new = new.to(self.values.device)
        source, target = ops.index_map(self.topology, new)
        move = Move(source, target, new.nnz)
        self.values.grad = None
        self.values.data = move.apply(self.values.data)
        self._store(new)
        return move

    def set_memory(self, memory: Memory) -> None:
        """Keep the indices as "fast" or "compact" has them from now on (see `sparsify`); ValueError else."""
        topology = self.topology.in_memory(memory)
        self.memory = memory
        self._store(topology)

    def _store(self, topology: Topology) -> None:
        self.granularity = topology.granularity
        kept = topology.in_memory(self.memory)
        kept = ops.transposed(kept) if self.memory == "fast" else kept
        for name in _INDEX_ARRAYS:
            setattr(self, name, getattr(kept, name))
        self._topology = None  # or the old arrays would live until the next look

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SparseLayer":
        self._topology = None
        return super()._apply(fn, recurse)

    def geometry(self) -> dict[str, tuple[int, int]]:
        """The keyword arguments of the layer's ops beyond values and topology."""
        return {}

    def choices(self) -> dict[str, Choice]:
        """What runs the layer's passes ("forward", "input gradient", "weight gradient") on the last input, and why.

        Empty before the first input, and off CPU and CUDA. The dtype is that of the values: under autocast others run.
        """
        if self.seen is None or self.values.device.type not in ("cpu", "cuda"):
            return {}
        (batch, high, wide), given = self.seen, self.geometry()
        geometry = (self.topology.kernel, *given.values()) if given else LINEAR
        granularity = self.granularity if self.values.is_cuda else None
        where = (geometry, (high, wide), batch, self.values.dtype, granularity)
        index = Index.of(self.topology)
        return {name: choose(pass_of(self.family, product, index, *where)) for name, product in _PASSES.items()}

    @property
    def family(self) -> str:
        """The family of products that the layer's passes belong to, as `fedsparse.ops.dispatch` names it."""
        return "linear"

    def keep_input(self, x: Any) -> Callable[[], Any]:
        """What the layer keeps of an input, Tensor or Blocked, for its backward pass: a function that gives it."""
        kept = x.detach()
        return lambda: kept

    def dense_weight(self) -> Tensor:
        """A new dense weight of shape (N, C[, kh, kw]) with zeros at the pruned places. Not used while training."""
        return self.topology.unpack(self.values.detach())

    def _load_from_state_dict(
        self, state: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *reports: list[str]
    ) -> None:
        _, _, errors = reports
        arrays = {name: state[prefix + name] for name in ("indptr", "cols", "values") if prefix + name in state}
        if arrays:
            try:
                self._take(**arrays)
            except (ValueError, TypeError) as error:
                errors.append(f"{prefix.rstrip('.')} is left as it was: {error}")
                return
        super()._load_from_state_dict(state, prefix, metadata, strict, *reports)

    def _take(self, indptr: Tensor | None = None, cols: Tensor | None = None, values: Tensor | None = None) -> None:
        """Take over the mask of a state, whose three arrays are only right together; make room for the values."""
        if indptr is None or cols is None or values is None:
            raise ValueError("indptr, cols and values belong together, and one of them is missing")
        topology = Topology.from_lists(indptr, cols, self.weight_shape, self.granularity)
        if tuple(values.shape) != (topology.nnz,):
            raise ValueError(f"values have shape {tuple(values.shape)}, but cols {topology.nnz} entries")
        self._store(topology.to(self.values.device))
        self.values.data = self.values.data.new_empty(topology.nnz)

    def extra_repr(self) -> str:
        """Shape, active weights and density, as `print(model)` shows them."""
        t = self.topology
        vector = f", granularity={t.granularity}" if t.granularity > 1 else ""
        return (
            f"weight={self.weight_shape}, active={t.nnz}, density={t.density:.4g}{vector}, bias={self.bias is not None}"
        )


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
        return _fill(dense, self)

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
        return _fill(dense, self)

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
            y = ops.conv2d(values, self.topology, as_tensor(x), self.bias, *sizes)
        else:
            with pruned_saves(x.tensor() if isinstance(x, StandIn) else x, store) as kept:
                y = ops.conv2d(values, self.topology, kept, self.bias, *sizes)
        return innermost(y, self.fused, self.level.halves) if self.region else y

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
            return packed(as_kept(x.tensor() if isinstance(x, StandIn) else x, store), store).unpack
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


@torch.no_grad()
def _fill(dense: _Dense, layer: SparseLayer) -> _Dense:
    dense.weight.copy_(layer.dense_weight())
    if layer.bias is not None and dense.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense
