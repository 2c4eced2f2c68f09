"""A change of the mask: new index arrays from the old ones, in time proportional to the active weights.

    change_index(indptr, cols, width, dropped, grown)   the lists without the groups at the positions `dropped` in cols,
                                                        and with the groups `grown`
    match_index(old lists, new lists, V)                positions in the values of the weights that both have
    transpose_index(indptr, cols, channels, taps)       the arrays of the transpose, of single weights

Back ends: cpu (C++), reference, which is `Topology`'s own and also serves other devices. No gradient.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsparse.ops.backend import active_backend
from fedsparse.ops.load import define, require_compiled
from fedsparse.topology import Topology

define("change_index(Tensor indptr, Tensor cols, SymInt width, Tensor dropped, Tensor grown) -> (Tensor, Tensor)")
define(
    "match_index(Tensor indptr, Tensor cols, Tensor new_indptr, Tensor new_cols, SymInt granularity) -> "
    "(Tensor, Tensor)"
)
define("transpose_index(Tensor indptr, Tensor cols, SymInt channels, SymInt taps) -> (Tensor, Tensor, Tensor)")


@torch.library.register_fake("fedsparse::change_index")
def _(indptr: Tensor, cols: Tensor, width: int, dropped: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(indptr), cols.new_empty(cols.shape[0] - dropped.shape[0] + grown.shape[0])


@torch.library.register_fake("fedsparse::match_index")
def _(indptr: Tensor, cols: Tensor, new_indptr: Tensor, new_cols: Tensor, granularity: int) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return tuple(indptr.new_empty(count, dtype=torch.int64) for _ in range(2))  # type: ignore[return-value]


@torch.library.register_fake("fedsparse::transpose_index")
def _(indptr: Tensor, cols: Tensor, channels: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    nnz = cols.shape[0]
    return indptr.new_empty(channels + 1), indptr.new_empty(nnz), indptr.new_empty(nnz)


def reference_changed(topology: Topology, dropped: Tensor, grown: Tensor) -> Topology:
    """`changed` by torch's own ops."""
    keep = torch.ones(topology.cols.shape[0], dtype=torch.bool, device=topology.device)
    keep[dropped] = False
    active = topology.groups()
    if bool(torch.isin(grown, active).any()):
        raise ValueError("a group that is to be grown is active already")
    joined = torch.sort(torch.cat([active[keep], grown])).values
    new = Topology.from_groups(joined, topology.shape, topology.granularity)
    return replace(new, cols=new.cols.to(topology.cols.dtype))


def changed(topology: Topology, dropped: Tensor | Sequence[int] = (), grown: Tensor | Sequence[int] = ()) -> Topology:
    """The topology without some of its groups and with others that it lacks; columns in the same type, no transpose.

    dropped: int64 [a], positions of active groups in `topology.cols`, strictly increasing. grown: int64 [b], indices
    (n // V) * row length + column of inactive groups, in any order. ValueError where one of `grown` is active, also
    where it is dropped, or stands twice.
    """
    drop, grow = (torch.as_tensor(x, dtype=torch.int64, device=topology.device) for x in (dropped, grown))
    if not _compiled(topology):
        return reference_changed(topology, drop, grow)
    try:
        indptr, cols = torch.ops.fedsparse.change_index(topology.indptr, topology.cols, topology.width, drop, grow)
    except RuntimeError as error:
        if "is active already" not in str(error) and "twice" not in str(error):
            raise
        raise ValueError(f"a group that is to be grown is active already, or stands twice: {error}") from error
    return Topology(topology.shape, indptr, cols, topology.granularity)


def index_map(old: Topology, new: Topology) -> tuple[Tensor, Tensor]:
    """`old.index_map(new)`: (positions in old's values, positions in new's) of the weights of both, int64, sorted."""
    if new.shape != old.shape or new.granularity != old.granularity or not _compiled(old):
        return old.index_map(new)
    return torch.ops.fedsparse.match_index(old.indptr, old.cols, new.indptr, new.cols, old.granularity)


def transposed(topology: Topology) -> Topology:
    """`topology.with_transpose()`: the same with the arrays of the transpose, where V = 1."""
    if topology.granularity > 1 or topology.t_cols is not None or not _compiled(topology):
        return topology.with_transpose()
    taps = topology.kernel[0] * topology.kernel[1]
    arrays = torch.ops.fedsparse.transpose_index(topology.indptr, topology.cols, topology.channels, taps)
    return replace(topology, **dict(zip(("t_indptr", "t_cols", "t_perm"), arrays)))


def _compiled(topology: Topology) -> bool:
    if topology.device.type != "cpu" or active_backend(topology.device) == "reference":
        return False
    require_compiled("cpu")
    return True
