"""Some rows of the gradient to a layer's dense weight.

On ordinary tensors torch computes them; on blocked ones (see `blocked`)

    blocked_gradient_rows(gy, x, batch, first, rows) = those rows of the gradient to the dense weight

by Winograd's minimal filtering where the convolution is 3x3 of stride 1 or 2 in float32, with a quarter or 0.56 of the
products (Lavin & Gray, CVPR 2016) and a rounding error some 10 times that of the plain sum, else by the kernels of
strips. It has the same bits for any number of threads. CPU (C++) and reference; no gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedsparse.ops.backend import active_backend
from fedsparse.ops.blocked import reference_from_blocked
from fedsparse.ops.load import define
from fedsparse.topology import Topology

define(
    "blocked_gradient_rows(Tensor gy, Tensor x, SymInt batch, SymInt first, SymInt rows, int[2] kernel, int[2] stride, "
    "int[2] padding, int[2] dilation) -> Tensor"
)


@torch.library.register_fake("fedsparse::blocked_gradient_rows")
def _(gy: Tensor, x: Tensor, batch: int, first: int, rows: int, kernel: Any, *geometry: Any) -> Tensor:
    return gy.new_empty(rows, x.shape[1] * kernel[0] * kernel[1])


def reference_gradient_rows(gy: Tensor, x: Tensor, batch: int, first: int, rows: int, *geometry: Any) -> Tensor:
    """blocked_gradient_rows by torch's own convolution; geometry as (kernel, stride, padding, dilation)."""
    ordinary = reference_from_blocked(gy, batch)[:, first : first + rows], reference_from_blocked(x, batch)
    weight = gy.new_empty(1).expand(rows, x.shape[1], *geometry[0])
    return torch.ops.aten.convolution_backward(
        *ordinary, weight, None, *geometry[1:], False, (0, 0), 1, [False, True, False]
    )[1].flatten(1)


def rows_of_gradient(
    uses: list[tuple[Tensor, Tensor]],
    batches: Sequence[int | None],
    rows: slice,
    topology: Topology,
    geometry: list[tuple[int, int]],
) -> Tensor:
    """Rows of the dense gradient, summed over the uses: [rows, width]."""
    tile = _of_one_use(*uses[0], batches[0], rows, topology, geometry)
    for (x, gy), batch in zip(uses[1:], batches[1:]):
        tile += _of_one_use(x, gy, batch, rows, topology, geometry)
    return tile


def _of_one_use(
    x: Tensor, gy: Tensor, batch: int | None, rows: slice, topology: Topology, geometry: list[tuple[int, int]]
) -> Tensor:
    if batch is not None:
        first, kernel = rows.start, topology.kernel
        arguments = (gy, x, batch, first, rows.stop - first, kernel, *geometry)
        if active_backend(x.device) == "reference":
            return reference_gradient_rows(*arguments)
        return torch.ops.fedsparse.blocked_gradient_rows(*arguments)
    gy = gy[:, rows]
    if x.dim() == 2:
        return gy.T @ x
    stride, padding, dilation = geometry
    shape = (gy.shape[1], topology.channels, *topology.kernel)
    weight = gy.new_empty(1).expand(shape)
    return torch.ops.aten.convolution_backward(
        gy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, [False, True, False]
    )[1].flatten(1)
