"""The index arrays of a topology as ops take them, and the way from and to a dense weight."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.topology import Topology


class Index(NamedTuple):
    """Index arrays of a `Topology`, the sizes that they do not tell, and the transpose where it is kept."""

    indptr: Tensor
    cols: Tensor
    t_indptr: Tensor | None
    t_cols: Tensor | None
    t_perm: Tensor | None
    granularity: int
    channels: int

    @classmethod
    def of(cls, topology: Topology) -> "Index":
        """The arrays of a topology."""
        t = topology
        return cls(t.indptr, t.cols, t.t_indptr, t.t_cols, t.t_perm, t.granularity, t.channels)

    @classmethod
    def saved(cls, arrays: Any, sizes: tuple[int, int]) -> "Index":
        """From `arrays` and `sizes`."""
        indptr, cols, t_indptr, t_cols, t_perm = arrays
        return cls(indptr, cols, t_indptr, t_cols, t_perm, *sizes)

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        """The tensors, for `save_for_backward`."""
        return self[:5]

    @property
    def sizes(self) -> tuple[int, int]:
        """The rest."""
        return self.granularity, self.channels

    @property
    def rows(self) -> int:
        """N, the number of output channels or features."""
        return (self.indptr.shape[0] - 1) * self.granularity

    @property
    def nnz(self) -> int:
        """Active weights."""
        return self.cols.shape[0] * self.granularity

    @property
    def transpose(self) -> tuple[Tensor | None, ...]:
        """The three arrays of the transpose, or three times None."""
        return self.t_indptr, self.t_cols, self.t_perm

    @property
    def topology(self) -> Topology:
        """The arrays as those of a weight of one row of `channels` columns a list: for what is not computed often."""
        return Topology((self.rows, self.channels), self.indptr, self.cols, self.granularity)


def rows_of(index: Index) -> Tensor:
    """Row of each active weight, int64 [nnz]."""
    rows = torch.arange(index.rows, device=index.indptr.device)
    counts = index.indptr.diff().repeat_interleave(index.granularity)
    return torch.repeat_interleave(rows, counts, output_size=index.nnz)


def single_rows(index: Index) -> tuple[Tensor, Tensor]:
    """(indptr int32 [N + 1], cols int32 [nnz]) with a list for every row; the index's own where V = 1 and int32."""
    if index.granularity == 1:
        return index.indptr, index.cols.int()
    t = index.topology
    return t.row_starts(), index.cols[t.group_of_value()].int()


def single_columns(index: Index, taps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of a weight of so many taps (kh * kw), as in `Topology`, sorted where it is not kept."""
    if index.t_indptr is not None and index.t_cols is not None and index.t_perm is not None:
        return index.t_indptr, index.t_cols, index.t_perm
    indptr, cols = single_rows(index)
    kept = Topology((index.rows, index.channels, taps, 1), indptr, cols).with_transpose()
    assert kept.t_indptr is not None
    assert kept.t_cols is not None
    assert kept.t_perm is not None
    return kept.t_indptr, kept.t_cols, kept.t_perm


def spread(values: Tensor, index: Index, width: int) -> Tensor:
    """Dense [N, width] of values [nnz]: values at the active weights, zeros elsewhere."""
    dense = values.new_zeros(index.rows, width)
    return dense.index_put((rows_of(index), single_rows(index)[1].long()), values)


def pick(dense: Tensor, index: Index) -> Tensor:
    """Values [nnz] of dense [N, width] at the active weights."""
    return dense[rows_of(index), single_rows(index)[1].long()]
