"""Topology: which weights of one layer are active, as index arrays with their transpose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Memory = Literal["fast", "compact"]
MEMORIES: tuple[Memory, ...] = ("fast", "compact")
_INDEX_LIMIT = 2**31
_SMALL = 2**15


@dataclass(frozen=True)
class Move:
    """Where the values that survive a mask change went: `new[target] = old[source]`, all else 0.

    Shapes: source, target int64 [kept]; `nnz` is the number of values after the change.
    """

    source: Tensor
    target: Tensor
    nnz: int

    def apply(self, old: Tensor) -> Tensor:
        """Return a tensor of shape [nnz] that holds the surviving entries of `old` and 0 at the grown ones."""
        return old.new_zeros(self.nnz).index_copy_(0, self.target, old.index_select(0, self.source))


@dataclass(frozen=True, eq=False)
class Topology:
    """Indices of the active weights of one dense weight of shape (N, C) or (N, C, kh, kw).

    With granularity V, rows sV to sV + V - 1 share their columns, which are listed once: such a group of rows has one
    list, and single weights are groups of one row. The values of the active weights are kept elsewhere, as one tensor
    [nnz] in row-major order: row sV + r of list s begins at V * indptr[s] + r * (indptr[s + 1] - indptr[s]).
    A topology never changes: a new mask makes a new topology.

    Attributes:
        shape: dense shape, (N, C) or (N, C, kh, kw).
        indptr: int32 [N / V + 1], list s owns columns indptr[s] to indptr[s + 1].
        cols: int32 or int16 [nnz / V], flat index in a row, (c * kh + ky) * kw + kx, strictly increasing in a list.
        granularity: V.
        t_indptr: int32 [C + 1], the same for the transpose, by input channel; it and the next two are None where the
            transpose is not kept (see `with_transpose`).
        t_cols: int32 [nnz], (n * kh + ky) * kw + kx, strictly increasing in an input channel.
        t_perm: int32 [nnz], position in the values of each entry of the transpose.
    """

    shape: tuple[int, ...]
    indptr: Tensor
    cols: Tensor
    granularity: int = 1
    t_indptr: Tensor | None = None
    t_cols: Tensor | None = None
    t_perm: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor, granularity: int = 1) -> Topology:
        """Topology of a boolean mask of the dense shape; ValueError where rows of one group differ."""
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, not {mask.dtype}.")
        shape = tuple(mask.shape)
        _check_shape(shape, granularity)
        groups = mask.unflatten(0, (shape[0] // granularity, granularity))
        if granularity > 1 and bool((groups != groups[:, :1]).any()):
            raise ValueError(f"the {granularity} rows of a group must have the same columns.")
        return cls._build(groups[:, :1].reshape(-1).nonzero().reshape(-1), shape, granularity)

    @classmethod
    def from_groups(cls, groups: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
        """Topology of the active groups (n // V) * row length + column; ValueError where not strictly increasing.

        groups: int64 [nnz / V]; with V = 1 these are row-major flat indices.
        """
        shape = tuple(int(size) for size in shape)
        _check_shape(shape, granularity)
        if groups.dtype != torch.int64 or groups.dim() != 1:
            raise ValueError(f"groups must be int64 with one dimension, not {groups.dtype} with {groups.dim()}.")
        if groups.numel():
            if bool((groups[1:] <= groups[:-1]).any()):
                raise ValueError("groups must be strictly increasing.")
            last = math.prod(shape) // granularity - 1
            if int(groups[0]) < 0 or int(groups[-1]) > last:
                raise ValueError(f"groups holds an index outside 0 to {last}.")
        return cls._build(groups, shape, granularity)

    @classmethod
    def from_flat(cls, flat: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
        """Topology of row-major flat indices, int64 [nnz]; ValueError where they fall or rows of a group differ."""
        single = cls.from_groups(flat, shape)
        return single if granularity == 1 else cls.from_mask(single.mask(), granularity)

    @classmethod
    def from_lists(cls, indptr: Tensor, cols: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
        """Topology of the arrays of the lists, as in the attributes; ValueError where they break an invariant."""
        shape = tuple(int(size) for size in shape)
        _check_shape(shape, granularity)
        _check_lists(indptr, cols, shape[0] // granularity, math.prod(shape[1:]))
        return cls(shape, indptr, cols, granularity)

    @classmethod
    def _build(cls, groups: Tensor, shape: tuple[int, ...], granularity: int) -> Topology:
        width = math.prod(shape[1:])
        indptr = _indptr(groups // max(1, width), shape[0] // granularity)
        return cls(shape, indptr, (groups % max(1, width)).to(torch.int32), granularity)

    @property
    def nnz(self) -> int:
        """Number of active weights."""
        return self.cols.shape[0] * self.granularity

    @property
    def numel(self) -> int:
        """Number of weights of the dense shape."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Active weights over all weights, 0 to 1; an empty weight has density 0."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def device(self) -> torch.device:
        """Device of the index arrays."""
        return self.indptr.device

    @property
    def rows(self) -> int:
        """N, the number of output channels or features."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """C, the number of input channels or features."""
        return self.shape[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw); (1, 1) for a linear weight."""
        return (self.shape[2], self.shape[3]) if len(self.shape) == 4 else (1, 1)

    @property
    def width(self) -> int:
        """Weights of a row, C * kh * kw."""
        return math.prod(self.shape[1:])

    def groups(self) -> Tensor:
        """Index (n // V) * row length + column of each active group, int64 [nnz / V], sorted."""
        lists = torch.arange(self.indptr.shape[0] - 1, device=self.device)
        of_group = torch.repeat_interleave(lists, self.indptr.diff(), output_size=self.cols.shape[0])
        return of_group * self.width + self.cols

    def row_starts(self) -> Tensor:
        """Position in the values at which each row begins, int32 [N + 1]."""
        if self.granularity == 1:
            return self.indptr
        starts = torch.zeros(self.rows + 1, dtype=torch.int32, device=self.device)
        counts = self.indptr.diff().repeat_interleave(self.granularity)
        torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])
        return starts

    def group_of_value(self) -> Tensor:
        """Position in `cols` of the group of each value, int64 [nnz]."""
        if self.granularity == 1:
            return torch.arange(self.nnz, device=self.device)
        counts = self.indptr.diff().repeat_interleave(self.granularity)
        before = self.indptr[:-1].repeat_interleave(self.granularity) - self.row_starts()[:-1]
        shift = torch.repeat_interleave(before, counts, output_size=self.nnz)
        return torch.arange(self.nnz, device=self.device) + shift

    def flat(self) -> Tensor:
        """Row-major flat dense index of each value, int64 [nnz], sorted."""
        starts = self.row_starts()
        rows = torch.arange(self.rows, device=self.device)
        row = torch.repeat_interleave(rows, starts.diff(), output_size=self.nnz)
        cols = self.cols if self.granularity == 1 else self.cols[self.group_of_value()]
        return row * self.width + cols

    def mask(self) -> Tensor:
        """Bool tensor of the dense shape, true where a weight is active."""
        mask = torch.zeros(self.numel // self.granularity, dtype=torch.bool, device=self.device)
        mask[self.groups()] = True
        lists = (self.indptr.shape[0] - 1, *self.shape[1:])
        return mask.reshape(lists).repeat_interleave(self.granularity, 0) if self.granularity > 1 else mask.view(lists)

    def to(self, device: torch.device | str) -> Topology:
        """The same topology on another device (self where it is there already)."""
        if self.indptr.to(device) is self.indptr:
            return self
        kept = (None if a is None else a.to(device) for a in (self.t_indptr, self.t_cols, self.t_perm))
        return Topology(self.shape, self.indptr.to(device), self.cols.to(device), self.granularity, *kept)

    def with_transpose(self) -> Topology:
        """The same with the arrays of the transpose, where V = 1; groups of rows need none (self where nothing is new).

        12 bytes an active weight instead of 4, or 2, for which backward passes need not sort the weights by channel.
        """
        if self.granularity > 1 or self.t_cols is not None:
            return self
        taps = math.prod(self.shape[2:])
        row = torch.repeat_interleave(torch.arange(self.rows, device=self.device), self.indptr.diff())
        channel, t_col = self.cols // taps, row * taps + self.cols % taps
        t_perm = torch.argsort(channel.long() * (self.rows * taps) + t_col)
        t_indptr, t_cols = _indptr(channel, self.channels), t_col[t_perm].to(torch.int32)
        return replace(self, t_indptr=t_indptr, t_cols=t_cols, t_perm=t_perm.to(torch.int32))

    def in_memory(self, memory: Memory) -> Topology:
        """The same as "fast" or "compact" has it: int32 columns, or int16 where they fit and no transpose.

        ValueError for another word. The transpose is not added.
        """
        if memory not in MEMORIES:
            raise ValueError(f"memory must be {' or '.join(map(repr, MEMORIES))}, not {memory!r}.")
        if memory == "fast":
            return self if self.cols.dtype == torch.int32 else replace(self, cols=self.cols.int())
        small = self.width <= _SMALL
        if self.t_cols is None and (not small or self.cols.dtype == torch.int16):
            return self
        cols = self.cols.to(torch.int16) if small else self.cols
        return replace(self, cols=cols, t_indptr=None, t_cols=None, t_perm=None)

    def index_map(self, new: Topology) -> tuple[Tensor, Tensor]:
        """Weights active in both: (positions in self's values, positions in new's), int64, sorted."""
        if new.shape != self.shape:
            raise ValueError(f"index_map needs equal dense shapes, not {self.shape} and {new.shape}.")
        old_flat, new_flat = self.flat(), new.flat().to(self.device)
        if not new_flat.numel():
            empty = torch.empty(0, dtype=torch.int64, device=self.device)
            return empty, empty.clone()
        place = torch.searchsorted(new_flat, old_flat).clamp_(max=new_flat.numel() - 1)
        kept = (new_flat[place] == old_flat).nonzero().reshape(-1)
        return kept, place[kept]

    def pack(self, dense: Tensor) -> Tensor:
        """Values [nnz] of a dense tensor of the dense shape."""
        if tuple(dense.shape) != self.shape:
            raise ValueError(f"dense has shape {tuple(dense.shape)}, the topology {self.shape}.")
        return dense.reshape(-1)[self.flat()]

    def unpack(self, values: Tensor) -> Tensor:
        """Dense tensor of the dense shape with zeros at the inactive weights."""
        if tuple(values.shape) != (self.nnz,):
            raise ValueError(f"values has shape {tuple(values.shape)}, the topology wants ({self.nnz},).")
        dense = values.new_zeros(self.numel)
        return dense.index_put((self.flat(),), values).reshape(self.shape)

    def validate(self) -> None:
        """Check every invariant of the index arrays; ValueError names the first that fails."""
        _check_shape(self.shape, self.granularity)
        _check_lists(self.indptr, self.cols, self.rows // self.granularity, self.width)
        kept = [array is not None for array in (self.t_indptr, self.t_cols, self.t_perm)]
        if not any(kept):
            return
        if not all(kept) or self.granularity > 1:
            raise ValueError("t_indptr, t_cols and t_perm are kept together, of single weights.")
        same = replace(self, t_indptr=None, t_cols=None, t_perm=None).with_transpose()
        for name in ("t_indptr", "t_cols", "t_perm"):
            if not torch.equal(getattr(self, name), getattr(same, name)):
                raise ValueError(f"{name} is not the transpose of indptr and cols.")


def _check_shape(shape: tuple[int, ...], granularity: int) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(f"shape must be (N, C) or (N, C, kh, kw), not {shape}.")
    if math.prod(shape) >= _INDEX_LIMIT:
        raise ValueError(f"shape {shape} has 2^31 weights or more; int32 indices cannot hold it.")
    if granularity < 1 or shape[0] % granularity:
        raise ValueError(f"granularity must be at least 1 and divide the {shape[0]} rows, not {granularity}.")


def _indptr(owner: Tensor, count: int) -> Tensor:
    indptr = torch.zeros(count + 1, dtype=torch.int32, device=owner.device)
    torch.cumsum(torch.bincount(owner, minlength=count), 0, dtype=torch.int32, out=indptr[1:])
    return indptr


def _check_lists(indptr: Tensor, cols: Tensor, rows: int, width: int) -> None:
    if indptr.dtype != torch.int32 or indptr.dim() != 1:
        raise ValueError("indptr must be int32 with one dimension.")
    if cols.dtype not in (torch.int32, torch.int16) or cols.dim() != 1:
        raise ValueError("cols must be int32 or int16 with one dimension.")
    if indptr.shape[0] != rows + 1:
        raise ValueError(f"indptr must have {rows + 1} entries, not {indptr.shape[0]}.")
    if int(indptr[0]) != 0 or int(indptr[-1]) != cols.shape[0] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"indptr must rise from 0 to {cols.shape[0]}.")
    if not cols.numel():
        return
    if int(cols.min()) < 0 or int(cols.max()) >= width:
        raise ValueError(f"cols holds an index outside 0 to {width - 1}.")
    falls = (cols.diff() <= 0).nonzero().reshape(-1) + 1
    starts = torch.isin(falls, indptr.to(falls.dtype))
    if not bool(starts.all()):
        raise ValueError("cols must be strictly increasing within a row.")
