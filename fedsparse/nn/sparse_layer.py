"""What the sparse layers share: a weight that exists only where the mask is active.

A sparse layer holds `values`, a Parameter of shape [nnz], and the index arrays of its `Topology` as buffers, so
that `state_dict`, `.to()` and `copy.deepcopy` carry them. `values` keeps its identity when the mask changes: only its
size does, and `set_topology` returns the `Move` by which optimizer state follows.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.ops.dispatch import LINEAR, Choice, choose, pass_of
from fedsparse.ops.index import Index
from fedsparse.topology import Memory, Move, Topology

_INDEX_ARRAYS = ("indptr", "cols", "t_indptr", "t_cols", "t_perm")
_PASSES = {"forward": "product", "input gradient": "transposed", "weight gradient": "sampled"}
_Dense = TypeVar("_Dense", nn.Linear, nn.Conv2d)
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


@torch.no_grad()
def fill(dense: _Dense, layer: SparseLayer) -> _Dense:
    """The dense layer, with the weight and the bias of the sparse one."""
    dense.weight.copy_(layer.dense_weight())
    if layer.bias is not None and dense.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense
