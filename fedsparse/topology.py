"""Topology: which weights of one layer are active, as index arrays with their transpose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_INDEX_LIMIT = 2**31


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
        moved = old.new_zeros(self.nnz)
        moved[self.target] = old[self.source]
        return moved


@dataclass(frozen=True, eq=False)
class Topology:
    """Indices of the active weights of one dense weight of shape (N, C) or (N, C, kh, kw).

    The values of the active weights are kept elsewhere, as one tensor [nnz] in row-major order.
    A topology never changes: a new mask makes a new topology.

    Attributes:
        shape: dense shape, (N, C) or (N, C, kh, kw).
        indptr: int32 [N + 1], row n owns positions indptr[n] to indptr[n + 1].
        cols: int32 [nnz], flat index in the row, (c * kh + ky) * kw + kx, strictly increasing in a row.
        t_indptr: int32 [C + 1], the same for the transpose, by input channel.
        t_cols: int32 [nnz], (n * kh + ky) * kw + kx, strictly increasing in an input channel.
        t_perm: int32 [nnz], position in the values of each entry of the transpose.
        granularity: V, so that V consecutive rows (nV to nV + V - 1) share their columns.
    """

    shape: tuple[int, ...]
    indptr: Tensor
    cols: Tensor
    t_indptr: Tensor
    t_cols: Tensor
    t_perm: Tensor
    granularity: int = 1

    @classmethod
    def from_mask(cls, mask: Tensor, granularity: int = 1) -> Topology:
        """Topology of a boolean mask of the dense shape; ValueError where rows of one group differ."""
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, not {mask.dtype}.")
        _check_shape(tuple(mask.shape), granularity)
        _check_groups(mask, granularity)
        return cls._build(mask.reshape(-1).nonzero().reshape(-1), tuple(mask.shape), granularity)

    @classmethod
    def from_flat(cls, flat: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
        """Topology of row-major flat indices, int64 [nnz]; ValueError where not strictly increasing."""
        shape = tuple(int(size) for size in shape)
        _check_shape(shape, granularity)
        if flat.dtype != torch.int64 or flat.dim() != 1:
            raise ValueError(f"flat must be int64 with one dimension, not {flat.dtype} with {flat.dim()}.")
        if flat.numel():
            if bool((flat[1:] <= flat[:-1]).any()):
                raise ValueError("flat must be strictly increasing.")
            if int(flat[0]) < 0 or int(flat[-1]) >= math.prod(shape):
                raise ValueError(f"flat holds an index outside 0 to {math.prod(shape) - 1}.")
        topology = cls._build(flat, shape, granularity)
        if granularity > 1:
            _check_groups(topology.mask(), granularity)
        return topology

    @classmethod
    def from_rows(cls, indptr: Tensor, cols: Tensor, shape: tuple[int, ...], granularity: int = 1) -> Topology:
        """Topology of the arrays of the rows, int32 as in the attributes; ValueError where they break an invariant."""
        _check_shape(shape, granularity)
        _check_lists("", indptr, cols, shape[0], math.prod(shape[1:]))
        rows = torch.repeat_interleave(torch.arange(shape[0], device=cols.device), indptr.diff().long())
        return cls.from_flat(rows * math.prod(shape[1:]) + cols, shape, granularity)

    @classmethod
    def _build(cls, flat: Tensor, shape: tuple[int, ...], granularity: int) -> Topology:
        rows, channels, taps = shape[0], shape[1], math.prod(shape[2:])
        row, col = flat // (channels * taps), flat % (channels * taps)
        channel, tap = col // taps, col % taps
        t_col = row * taps + tap
        t_perm = torch.argsort(channel * (rows * taps) + t_col)
        return cls(
            shape=shape,
            indptr=_indptr(row, rows),
            cols=col.to(torch.int32),
            t_indptr=_indptr(channel, channels),
            t_cols=t_col[t_perm].to(torch.int32),
            t_perm=t_perm.to(torch.int32),
            granularity=granularity,
        )

    @property
    def nnz(self) -> int:
        """Number of active weights."""
        return self.cols.shape[0]

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

    def flat(self) -> Tensor:
        """Row-major flat dense index of each value, int64 [nnz], sorted."""
        lengths = self.indptr.diff().to(torch.int64)
        row = torch.repeat_interleave(torch.arange(self.rows, device=self.device), lengths, output_size=self.nnz)
        return row * math.prod(self.shape[1:]) + self.cols

    def mask(self) -> Tensor:
        """Bool tensor of the dense shape, true where a weight is active."""
        mask = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        mask[self.flat()] = True
        return mask.reshape(self.shape)

    def to(self, device: torch.device | str) -> Topology:
        """The same topology on another device (self where it is there already)."""
        if self.indptr.to(device) is self.indptr:
            return self
        names = ("indptr", "cols", "t_indptr", "t_cols", "t_perm")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

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
        taps = math.prod(self.shape[2:])
        _check_lists("", self.indptr, self.cols, self.rows, self.channels * taps)
        _check_lists("t_", self.t_indptr, self.t_cols, self.channels, self.rows * taps)
        same = Topology._build(self.flat(), self.shape, self.granularity)
        for name in ("t_indptr", "t_cols", "t_perm"):
            if not torch.equal(getattr(self, name), getattr(same, name)):
                raise ValueError(f"{name} is not the transpose of indptr and cols.")
        _check_groups(self.mask(), self.granularity)


def _check_shape(shape: tuple[int, ...], granularity: int) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(f"shape must be (N, C) or (N, C, kh, kw), not {shape}.")
    if math.prod(shape) >= _INDEX_LIMIT:
        raise ValueError(f"shape {shape} has 2^31 weights or more; int32 indices cannot hold it.")
    if granularity < 1 or shape[0] % granularity:
        raise ValueError(f"granularity must be at least 1 and divide the {shape[0]} rows, not {granularity}.")


def _check_groups(mask: Tensor, granularity: int) -> None:
    if granularity == 1:
        return
    groups = mask.unflatten(0, (mask.shape[0] // granularity, granularity))
    if bool((groups != groups[:, :1]).any()):
        raise ValueError(f"the {granularity} rows of a group must have the same columns.")


def _indptr(owner: Tensor, count: int) -> Tensor:
    indptr = torch.zeros(count + 1, dtype=torch.int32, device=owner.device)
    torch.cumsum(torch.bincount(owner, minlength=count), 0, dtype=torch.int32, out=indptr[1:])
    return indptr


def _check_lists(prefix: str, indptr: Tensor, cols: Tensor, rows: int, width: int) -> None:
    for name, array in ((f"{prefix}indptr", indptr), (f"{prefix}cols", cols)):
        if array.dtype != torch.int32 or array.dim() != 1:
            raise ValueError(f"{name} must be int32 with one dimension.")
    if indptr.shape[0] != rows + 1:
        raise ValueError(f"{prefix}indptr must have {rows + 1} entries, not {indptr.shape[0]}.")
    if int(indptr[0]) != 0 or int(indptr[-1]) != cols.shape[0] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"{prefix}indptr must rise from 0 to {cols.shape[0]}.")
    if not cols.numel():
        return
    if int(cols.min()) < 0 or int(cols.max()) >= width:
        raise ValueError(f"{prefix}cols holds an index outside 0 to {width - 1}.")
    falls = (cols.diff() <= 0).nonzero().reshape(-1) + 1
    starts = torch.isin(falls, indptr.to(falls.dtype))
    if not bool(starts.all()):
        raise ValueError(f"{prefix}cols must be strictly increasing within a row.")
