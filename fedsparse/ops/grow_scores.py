"""The inactive weights with the largest gradients, found without ever holding a layer's whole dense gradient.

The gradient sum_b gy[b, n] x[b, c] (or its convolution) is computed for a few rows at a time, a tile of at most
`TILE` elements where one group of rows allows it, and only the best candidates are kept.
"""

import math

import torch
from torch import Tensor

from fedsparse.ops.algebra import check_operand
from fedsparse.ops.conv2d import Size, pair
from fedsparse.ops.topk import topk
from fedsparse.topology import Topology

TILE = 1 << 18


def grow_scores(
    x: Tensor,
    gy: Tensor,
    topology: Topology,
    count: int,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    direction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Inactive weights with the largest |gradient|: (indices int64 [a], gradients float32 [a]).

    Args:
        x: input of the layer, [B, C] or [B, C, H, W].
        gy: gradient of its output, [B, N] or [B, N, H', W'].
        topology: of the layer's weight. With granularity V > 1, groups of V rows are scored by the sum of |gradient|
            and the result is (group indices int64 [a], gradients float32 [a, V]), where a group's index is
            (n // V) * row length + column.
        count: how many to find; a is smaller only where there are fewer candidates.
        stride: of the convolution, as padding and dilation.
        direction: signs -1, 0, 1 of the weight's shape, or None. With it a group is a candidate only where a step down
            the gradient agrees: the sum over the group of sign(-gradient) * direction is above 0.

    Indices are sorted; ties go to the lower index. ValueError where shapes disagree, or a gradient is NaN.
    """
    _check(x, gy, topology, count)
    if direction is not None and tuple(direction.shape) != tuple(topology.shape):
        raise ValueError(
            f"grow_scores: direction must have shape {tuple(topology.shape)}, not {tuple(direction.shape)}."
        )
    geometry = [pair("grow_scores", n, s, m) for n, s, m in (("stride", stride, 1), ("padding", padding, 0))]
    geometry.append(pair("grow_scores", "dilation", dilation, 1))
    V, width = topology.granularity, math.prod(topology.shape[1:])
    step = max(1, TILE // max(1, width * V)) * V
    best = _Best(count, V, x)
    for start in range(0, topology.rows, step):
        stop = min(start + step, topology.rows)
        gradient = _rows_of_gradient(x, gy[:, start:stop], topology, geometry).reshape(-1, V, width)
        score = gradient.abs().sum(1)
        score[_active(topology, start, stop)] = -1
        if direction is not None:
            signs = direction[start:stop].reshape(gradient.shape)
            score[(gradient.sign() * signs).sum(1) >= 0] = -1
        best.offer(score.reshape(-1), gradient.transpose(1, 2).reshape(-1, V), start // V * width)
    return best.indices, best.gradients if V > 1 else best.gradients.reshape(-1)


def _active(topology: Topology, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(group from the first of the tile, column) of each active weight of rows start to stop."""
    starts = topology.indptr[start : stop + 1]
    rows = torch.arange(stop - start, device=topology.device).repeat_interleave(starts.diff().long())
    return rows // topology.granularity, topology.cols[int(starts[0]) : int(starts[-1])].long()


class _Best:
    """The best candidates so far: scores, indices (sorted), gradients."""

    def __init__(self, count: int, granularity: int, like: Tensor) -> None:
        self.count = count
        self.scores = like.new_empty(0)
        self.indices = torch.empty(0, dtype=torch.int64, device=like.device)
        self.gradients = torch.empty(0, granularity, dtype=torch.float32, device=like.device)

    def offer(self, scores: Tensor, gradients: Tensor, first: int) -> None:
        """Take candidates with indices from `first` on, above all earlier ones; a negative score is no candidate."""
        if bool(scores.isnan().any()):
            raise ValueError("grow_scores: a gradient is NaN.")
        # A later candidate beats a tie at no time, so one that only equals the weakest kept is dropped here.
        floor = self.scores.min() if self.scores.shape[0] and self.scores.shape[0] == self.count else -0.5
        eligible = (scores > floor).nonzero().reshape(-1)
        chosen = eligible[topk(scores[eligible], min(self.count, eligible.shape[0]))]
        joined = torch.cat((self.scores, scores[chosen]))
        kept = topk(joined, min(self.count, joined.shape[0]))
        self.scores = joined[kept]
        self.indices = torch.cat((self.indices, chosen + first))[kept]
        self.gradients = torch.cat((self.gradients, gradients[chosen].float()))[kept]


def _rows_of_gradient(x: Tensor, gy: Tensor, topology: Topology, geometry: list[tuple[int, int]]) -> Tensor:
    if x.dim() == 2:
        return gy.T @ x
    stride, padding, dilation = geometry
    shape = (gy.shape[1], topology.channels, *topology.kernel)
    weight = gy.new_empty(1).expand(shape)
    return torch.ops.aten.convolution_backward(
        gy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, [False, True, False]
    )[1]


def _check(x: Tensor, gy: Tensor, topology: Topology, count: int) -> None:
    dims = len(topology.shape)
    check_operand("grow_scores", "x", x, dims, x)
    check_operand("grow_scores", "gy", gy, dims, x)
    if x.shape[0] != gy.shape[0]:
        raise ValueError(f"grow_scores: x has batch {x.shape[0]}, gy has {gy.shape[0]}.")
    for name, operand, size in (("x", x, topology.channels), ("gy", gy, topology.rows)):
        if operand.shape[1] != size:
            raise ValueError(f"grow_scores: {name} must have {size} channels, not {operand.shape[1]}.")
    if topology.device != x.device:
        raise ValueError(f"grow_scores: the topology is on {topology.device}, x on {x.device}.")
    if count < 0:
        raise ValueError(f"grow_scores: count must be at least 0, not {count}.")
