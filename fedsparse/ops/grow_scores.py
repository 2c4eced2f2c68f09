"""The inactive weights with the largest gradients, found without ever holding a layer's whole dense gradient.

    grow_scores(tile, best) = the best groups of `best` and of the inactive groups of a tile of rows

The gradient sum_b gy[b, n] x[b, c] (or its convolution) is computed for a few rows at a time, a tile of at most `TILE`
elements where one group of rows allows it, by `gradient_rows`, and only the best candidates are kept.

Back ends of the selection: cpu (C++: one pass over the tile, memory for the candidates kept), triton (the default on
CUDA where triton is installed: the host waits for the result alone), reference, which serves other devices. No
gradient.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.algebra import check_operand
from fedsparse.ops.backend import active_backend
from fedsparse.ops.blocked import check_batch, check_blocked
from fedsparse.ops.conv2d import Size, pair
from fedsparse.ops.gradient_rows import rows_of_gradient
from fedsparse.ops.load import define, require_compiled
from fedsparse.ops.topk import selects_on_triton, topk, triton_selected
from fedsparse.topology import Topology

TILE = 1 << 18

define(
    "grow_scores(Tensor tile, Tensor indptr, Tensor cols, SymInt first, SymInt granularity, Tensor? direction, "
    "Tensor scores, Tensor indices, Tensor gradients) -> (Tensor, Tensor, Tensor)"
)


class Best(NamedTuple):
    """The best `count` groups so far: scores float64 [count], -1 where there is none; indices int64 [count], sorted
    and those without a score last; gradients float32 [count, V]."""

    scores: Tensor
    indices: Tensor
    gradients: Tensor


@torch.library.register_fake("fedsparse::grow_scores")
def _(tile, indptr, cols, first, granularity, direction, scores, indices, gradients):  # type: ignore[no-untyped-def]
    return torch.empty_like(scores), torch.empty_like(indices), torch.empty_like(gradients)


def reference(
    tile: Tensor,
    indptr: Tensor,
    cols: Tensor,
    first: int,
    granularity: int,
    direction: Tensor | None,
    scores: Tensor,
    indices: Tensor,
    gradients: Tensor,
) -> Best:
    """Rows `first` and following of the gradient, tile [rows, width], against the best so far; see `Best`.

    indptr, cols: the lists of the whole weight, one for each group of rows. direction: [rows, width] or None. A NaN in
    the tile makes all scores NaN.
    """
    groups = tile.reshape(-1, granularity, tile.shape[1])
    score = groups.double().abs().sum(1).to(tile.dtype).double()
    if bool(score.isnan().any()):
        return Best(torch.full_like(scores, math.nan), indices, gradients)
    if direction is not None:
        score[(groups.sign() * direction.reshape(groups.shape)).sum(1) >= 0] = -1
    starts = indptr[first // granularity : first // granularity + len(score) + 1]
    lists = torch.arange(len(score), device=tile.device).repeat_interleave(starts.diff().long())
    score[lists, cols[int(starts[0]) : int(starts[-1])].long()] = -1
    joined = torch.cat((scores, score.reshape(-1)))
    new = torch.arange(score.numel(), device=tile.device) + first // granularity * tile.shape[1]
    kept = topk(joined, len(scores))
    kept = kept[torch.sort(joined[kept] < 0, stable=True).indices]
    rows_of_groups = groups.transpose(1, 2).reshape(-1, granularity).float()
    return Best(joined[kept], torch.cat((indices, new))[kept], torch.cat((gradients, rows_of_groups))[kept])


def triton_merged(
    tile: Tensor,
    indptr: Tensor,
    cols: Tensor,
    first: int,
    granularity: int,
    direction: Tensor | None,
    scores: Tensor,
    indices: Tensor,
    gradients: Tensor,
) -> Best:
    """As `reference`, but that a NaN in the tile stands among the best scores; the host waits for nothing."""
    from fedsparse.kernels import grow_scores as kernels

    count, (rows, width) = len(scores), tile.shape
    if not count or not tile.numel():
        return Best(scores, indices, gradients)
    kind = torch.float64 if tile.dtype == torch.float64 else torch.float32
    joined = tile.new_empty(count + rows // granularity * width, dtype=kind)
    joined[:count] = scores
    tile = tile.contiguous()
    along = None if direction is None else direction.contiguous()
    kernels.score_tile(tile, along, indptr, cols, first // granularity, granularity, joined[count:])
    kept = triton_selected(joined, [len(joined)], [count])
    kept = kept[torch.sort(joined[kept] < 0, stable=True).indices]
    new, old = (kept - count).clamp(min=0), kept.clamp(max=count - 1)
    is_new = kept >= count
    row = (new // width * granularity)[:, None] + torch.arange(granularity, device=tile.device)
    fresh = tile[row, (new % width)[:, None]].float()
    return Best(
        joined[kept].double(),
        torch.where(is_new, new + first // granularity * width, indices[old]),
        torch.where(is_new[:, None], fresh, gradients[old]),
    )


def grow_scores(
    x: Tensor | Sequence[Tensor],
    gy: Tensor | Sequence[Tensor],
    topology: Topology,
    count: int,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    direction: Tensor | None = None,
    batches: int | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Inactive weights with the largest |gradient|: (indices int64 [a], gradients float32 [a]).

    Args:
        x: input of the layer, [B, C] or [B, C, H, W]; of a layer that is used several times, its inputs.
        gy: gradient of its output, [B, N] or [B, N, H', W'], or one for each of the inputs.
        topology: of the layer's weight. With granularity V > 1, groups of V rows are scored by the sum of |gradient|
            and the result is (group indices int64 [a], gradients float32 [a, V]), where a group's index is
            (n // V) * row length + column.
        count: how many to find; a is smaller only where there are fewer candidates.
        stride: of the convolution, as padding and dilation.
        direction: signs -1, 0, 1 of the weight's shape, or None. With it a group is a candidate only where a step down
            the gradient agrees: the sum over the group of sign(-gradient) * direction is above 0.
        batches: where x and gy are blocked tensors of a convolution, the number of images of each.

    Indices are sorted; ties go to the lower index. ValueError where shapes disagree, or a gradient is NaN.
    """
    single = isinstance(x, Tensor) and isinstance(gy, Tensor)
    uses: list[tuple[Tensor, Tensor]] = list(zip([x], [gy])) if single else list(zip(x, gy, strict=True))  # type: ignore[list-item]
    images = [None] * len(uses) if batches is None else [batches] if isinstance(batches, int) else list(batches)
    for (one, its), batch in zip(uses, images, strict=True):
        _check(one, its, topology, batch)
    geometry = [pair("grow_scores", n, s, m) for n, s, m in (("stride", stride, 1), ("padding", padding, 0))]
    geometry.append(pair("grow_scores", "dilation", dilation, 1))
    search = GrowSearch(topology, count, direction)
    for rows in tiles(slice(0, topology.rows), search.width, topology.granularity):
        search.look_at(rows.start, rows_of_gradient(uses, images, rows, topology, geometry))
    return search.found()


def tiles(rows: slice, width: int, granularity: int = 1) -> Iterator[slice]:
    """Cut rows of `width` weights into tiles of at most `TILE` weights, or of one group of rows where that is more.

    They are about equal, and where they have so many rows, those are multiples of 32, or of 8: strips of the kernels.
    """
    most = max(1, TILE // max(1, width * granularity)) * granularity
    even = -(-(rows.stop - rows.start) // max(1, -(-(rows.stop - rows.start) // most)))
    unit = math.lcm(granularity, 32 if most >= 128 else 8)
    unit = unit if unit <= most else granularity
    step = max(granularity, min(-(-even // unit), most // unit) * unit)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


class GrowSearch:
    """The inactive weights with the largest |gradient| of a gradient that comes some rows at a time.

    topology, count and direction are those of `grow_scores`, which also says what the result is.
    """

    def __init__(self, topology: Topology, count: int, direction: Tensor | None = None) -> None:
        if direction is not None and tuple(direction.shape) != tuple(topology.shape):
            raise ValueError(
                f"grow_scores: direction must have shape {tuple(topology.shape)}, not {tuple(direction.shape)}."
            )
        if count < 0:
            raise ValueError(f"grow_scores: count must be at least 0, not {count}.")
        self.topology, self.direction, V = topology, direction, topology.granularity
        self.width = math.prod(topology.shape[1:])
        self.best = _nothing(min(count, (topology.numel - topology.nnz) // V), V, topology.device)

    def look_at(self, first: int, rows: Tensor) -> None:
        """Take the rows `first` and following of the gradient, [rows, ...].

        Each row is looked at once; first and the number of rows are multiples of V. ValueError where one is NaN: at
        once, or on the triton back end, where the host does not wait for each tile, in `found`.
        """
        if rows.dim() == 0 or rows.numel() != len(rows) * self.width or first + len(rows) > self.topology.rows:
            raise ValueError(
                f"grow_scores: rows {first} and following of a gradient of shape {tuple(self.topology.shape)} "
                f"cannot be {tuple(rows.shape)}."
            )
        stop = first + len(rows)
        tile = rows.flatten(1)
        along = None if self.direction is None else self.direction[first:stop].reshape(tile.shape).to(tile)
        self.best = _merged(tile, self.topology, first, along, self.best)
        if not selects_on_triton(tile):
            self._check()

    def _check(self) -> None:
        if bool(self.best.scores.isnan().any()):
            raise ValueError("grow_scores: a gradient is NaN.")

    def found(self) -> tuple[Tensor, Tensor]:
        """(indices int64 [a], gradients float32 [a], or [a, V]) of the rows looked at so far."""
        self._check()
        count = int((self.best.scores >= 0).sum())
        gradients = self.best.gradients[:count]
        return self.best.indices[:count], gradients if self.topology.granularity > 1 else gradients.reshape(-1)


def _nothing(count: int, granularity: int, device: torch.device) -> Best:
    return Best(
        torch.full((count,), -1.0, dtype=torch.float64, device=device),
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.zeros(count, granularity, device=device),
    )


def _merged(tile: Tensor, topology: Topology, start: int, direction: Tensor | None, best: Best) -> Best:
    arguments = (tile, topology.indptr, topology.cols, start, topology.granularity, direction, *best)
    if selects_on_triton(tile):
        return triton_merged(*arguments)
    if tile.device.type != "cpu" or active_backend(tile.device) == "reference":
        return reference(*arguments)
    require_compiled("cpu")
    return Best(*torch.ops.fedsparse.grow_scores(*arguments))


def _check(x: Tensor, gy: Tensor, topology: Topology, batch: int | None) -> None:
    if batch is not None:
        for name, blocks in (("x", x), ("gy", gy)):
            check_blocked("grow_scores", name, blocks)
            check_batch("grow_scores", blocks, batch)
    dims = len(topology.shape) if batch is None else 5
    check_operand("grow_scores", "x", x, dims, x)
    check_operand("grow_scores", "gy", gy, dims, x)
    if x.shape[0] != gy.shape[0]:
        raise ValueError(f"grow_scores: x has batch {x.shape[0]}, gy has {gy.shape[0]}.")
    for name, operand, size in (("x", x, topology.channels), ("gy", gy, topology.rows)):
        if operand.shape[1] != size:
            raise ValueError(f"grow_scores: {name} must have {size} channels, not {operand.shape[1]}.")
    if topology.device != x.device:
        raise ValueError(f"grow_scores: the topology is on {topology.device}, x on {x.device}.")
