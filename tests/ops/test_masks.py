"""A change of the mask by the compiled ops: the arrays of `Topology`'s own functions, bit for bit."""

import pytest
import torch
from op_cases import random_mask

from fedsparse import ops
from fedsparse.topology import Topology

SHAPES = {
    "linear, primes": (5, 7),
    "convolution": (6, 4, 3, 3),
    "rectangular kernel": (6, 4, 1, 5),
    "no rows": (0, 3),
    "no channels": (3, 0),
    "many lists": (300, 5, 3, 3),
}


def topology(shape: tuple[int, ...], density: float | str, V: int = 1, seed: int = 0) -> Topology:
    return Topology.from_mask(random_mask((shape[0] * V, *shape[1:]), density, seed, V), V)


def same(a: Topology, b: Topology) -> None:
    for name in ("indptr", "cols", "t_indptr", "t_cols", "t_perm"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), name


@pytest.mark.parametrize("memory", ["fast", "compact"])
@pytest.mark.parametrize("V", [1, 4])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0, "gaps"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_changed_drops_and_grows(shape: tuple[int, ...], density: float | str, V: int, memory: str) -> None:
    """Every third active group goes, every second inactive one comes, given in falling order."""
    old = topology(shape, density, V).in_memory(memory)
    active = old.groups()
    inactive = torch.ones(old.numel // V, dtype=torch.bool)
    inactive[active] = False
    dropped, grown = torch.arange(0, len(active), 3), inactive.nonzero().flatten()[::2].flip(0)
    keep = torch.ones(len(active), dtype=torch.bool)
    keep[dropped] = False
    new = ops.changed(old, dropped, grown)
    new.validate()
    assert new.cols.dtype == old.cols.dtype
    assert torch.equal(new.groups(), torch.cat((active[keep], grown)).sort().values)
    with ops.use_backend("reference"):
        same(new, ops.changed(old, dropped, grown))


@pytest.mark.parametrize("V", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_index_map_pairs_the_weights_of_both(shape: tuple[int, ...], V: int) -> None:
    old, new = topology(shape, 0.5, V, 1), topology(shape, 0.4, V, 2).in_memory("compact")
    found = ops.index_map(old, new)
    both = (old.mask() & new.mask()).reshape(-1).nonzero().flatten()
    assert torch.equal(old.flat()[found[0]], both)
    assert torch.equal(new.flat()[found[1]], both)
    assert all(torch.equal(a, b) for a, b in zip(found, old.index_map(new)))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0, "gaps"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_transpose_is_the_reference_s(shape: tuple[int, ...], density: float | str) -> None:
    t = topology(shape, density)
    same(ops.transposed(t), t.with_transpose())
    assert ops.transposed(topology(shape, density, 2)).t_cols is None


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    old, new = topology((300, 5, 3, 3), 0.5, 2, 1), topology((300, 5, 3, 3), 0.4, 2, 2)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ops.index_map(old, new))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


T = Topology.from_groups(torch.tensor([1, 3, 6]), (2, 4))
LONG = torch.tensor


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("dropped", "grown", "words"),
    [([], [3], "active already"), ([1], [3], "active already"), ([], [2, 2], "twice|strictly increasing")],
)
def test_groups_that_are_there_are_refused(dropped: list[int], grown: list[int], words: str, backend: str) -> None:
    with ops.use_backend(backend), pytest.raises(ValueError, match=words):
        ops.changed(T, dropped, grown)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda raw: raw.change_index(T.indptr, T.cols, 4, LONG([1, 1]), LONG([0])), "dropped must be strictly"),
        (lambda raw: raw.change_index(T.indptr, T.cols, 4, LONG([3]), LONG([0])), "outside 0 to 2"),
        (lambda raw: raw.change_index(T.indptr, T.cols, 4, LONG([0]), LONG([8])), "outside 0 to 7"),
        (lambda raw: raw.change_index(T.indptr, T.cols, 2, LONG([0]), LONG([0])), "cols holds an index outside"),
        (lambda raw: raw.change_index(T.indptr, T.cols, 4, T.cols, LONG([0])), "dropped must be int64"),
        (lambda raw: raw.match_index(T.indptr, T.cols, T.indptr[:2], T.cols[:2], 1), "as many lists"),
        (lambda raw: raw.transpose_index(T.indptr, T.cols, 1, 2), "cols holds an index outside"),
    ],
)
def test_the_compiled_ops_check_what_they_read(call, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call(torch.ops.fedsparse)


def test_opcheck() -> None:
    raw, t, other = torch.ops.fedsparse, topology((6, 4, 3, 3), 0.4), topology((6, 4, 3, 3), 0.4, 1, 3)
    grown = torch.tensor([int((~t.mask()).flatten().nonzero()[0])])
    torch.library.opcheck(raw.change_index, (t.indptr, t.cols, 36, torch.tensor([0, 2]), grown))
    torch.library.opcheck(raw.match_index, (t.indptr, t.cols, other.indptr, other.cols, 1))
    torch.library.opcheck(raw.transpose_index, (t.indptr, t.cols, 4, 9))
