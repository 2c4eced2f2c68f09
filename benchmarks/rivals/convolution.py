"""Public rivals of one 3x3 convolution on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsparse.topology import Topology

Calls = dict[str, Callable[[], Tensor]]


def csr(topology: Topology, values: Tensor, x: Tensor, gy: Tensor) -> Calls:
    """torch.sparse CSR on windows; unfolding and folding count, as they must be done."""
    rows, columns = topology.rows, topology.channels * 9
    indptr, cols = topology.row_starts(), topology.cols[topology.group_of_value()]
    weight = torch.sparse_csr_tensor(indptr, cols, values, (rows, columns), check_invariants=True)
    transposed = topology.unpack(values).reshape(rows, columns).T.to_sparse_csr()
    pattern = torch.sparse_csr_tensor(indptr, cols, torch.zeros_like(values), (rows, columns))
    batch, size = x.shape[0], x.shape[2]

    def windows() -> Tensor:
        return F.unfold(x, 3, padding=1).transpose(0, 1).reshape(columns, -1)

    def flat() -> Tensor:
        return gy.transpose(0, 1).reshape(rows, -1)

    def back() -> Tensor:
        return F.fold((transposed @ flat()).reshape(columns, batch, -1).transpose(0, 1), (size, size), 3, padding=1)

    return {
        "forward": lambda: (weight @ windows()).reshape(rows, batch, size, size).transpose(0, 1).contiguous(),
        "input": back,
        "weight": lambda: torch.sparse.sampled_addmm(pattern, flat(), windows().T).values(),
    }


def sparseprop(topology: Topology, values: Tensor, x: Tensor, gy: Tensor, over_on: bool) -> Calls:
    """SparseProp's layer through autograd: its backward computes both gradients at once, so they count as one pass.

    over_on: which of its two kernels; the faster one is reported, as its own chooser would take it.
    """
    from sparseprop.modules import SparseConv2d

    conv = torch.nn.Conv2d(topology.channels, topology.rows, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(topology.unpack(values))
    layer = SparseConv2d.from_dense(conv, vectorizing_over_on=over_on)
    given = x.clone().requires_grad_()
    kept: list[Tensor] = []

    def forward() -> Tensor:
        kept[:] = [layer(given)]
        return kept[0]

    def backward() -> Tensor:
        return torch.autograd.grad(kept[0], [given, *layer.parameters()], gy, allow_unused=True)[0]

    expected = F.conv2d(x, topology.unpack(values), padding=1)
    error = float((forward().detach() - expected).abs().max() / expected.abs().max())
    assert error < 1e-4, f"SparseProp computes something else: relative error {error:.1e}"
    return {"forward": forward, "input": backward}
