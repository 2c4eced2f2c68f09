"""The index arrays of a topology as ops take them, and the way from and to a dense weight."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse.topology import Topology


class Index(NamedTuple):
    """Index arrays of a `Topology`, int32: rows first, then the transpose."""

    indptr: Tensor
    cols: Tensor
    t_indptr: Tensor
    t_cols: Tensor
    t_perm: Tensor

    @classmethod
    def of(cls, topology: Topology) -> "Index":
        """The arrays of a topology."""
        return cls(topology.indptr, topology.cols, topology.t_indptr, topology.t_cols, topology.t_perm)

    @property
    def rows(self) -> int:
        """N, the number of output channels or features."""
        return self.indptr.shape[0] - 1

    @property
    def channels(self) -> int:
        """C, the number of input channels or features."""
        return self.t_indptr.shape[0] - 1


def rows_of(index: Index) -> Tensor:
    """Row of each active weight, int64 [nnz]."""
    rows = torch.arange(index.rows, device=index.indptr.device)
    return torch.repeat_interleave(rows, index.indptr.diff().long(), output_size=index.cols.shape[0])


def spread(values: Tensor, index: Index, width: int) -> Tensor:
    """Dense [N, width] of values [nnz]: values at the active weights, zeros elsewhere."""
    dense = values.new_zeros(index.rows, width)
    return dense.index_put((rows_of(index), index.cols.long()), values)


def pick(dense: Tensor, index: Index) -> Tensor:
    """Values [nnz] of dense [N, width] at the active weights."""
    return dense[rows_of(index), index.cols.long()]
