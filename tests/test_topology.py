from dataclasses import replace

import pytest
import torch

from fedsparse.topology import Topology

CASES = [  # shape, density, why
    pytest.param((5, 7), 0.4, id="linear, primes"),
    pytest.param((4, 3, 3, 3), 0.3, id="convolution"),
    pytest.param((6, 4, 1, 5), 0.5, id="rectangular kernel"),
    pytest.param((4, 3, 3, 3), 0.0, id="nothing active"),
    pytest.param((4, 3, 3, 3), 1.0, id="everything active"),
    pytest.param((0, 3), 1.0, id="no rows"),
    pytest.param((3, 0), 1.0, id="no channels"),
]


def random_mask(shape: tuple[int, ...], density: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize(("shape", "density"), CASES)
def test_mask_survives_the_round_trip(shape: tuple[int, ...], density: float) -> None:
    mask = random_mask(shape, density)
    topology = Topology.from_mask(mask)
    topology.validate()
    assert torch.equal(topology.mask(), mask)
    assert topology.nnz == int(mask.sum())
    assert torch.equal(topology.flat(), mask.reshape(-1).nonzero().reshape(-1))
    again = Topology.from_flat(topology.flat(), shape)
    assert all(torch.equal(getattr(again, n), getattr(topology, n)) for n in ("indptr", "cols"))
    lists = Topology.from_lists(topology.indptr, topology.cols, shape)
    assert torch.equal(lists.mask(), mask)


@pytest.mark.parametrize(("shape", "density"), CASES)
def test_transpose_lists_the_transposed_weight(shape: tuple[int, ...], density: float) -> None:
    mask = random_mask(shape, density)
    topology = Topology.from_mask(mask).with_transpose()
    topology.validate()
    dense = torch.randn(shape) * mask
    swapped = Topology.from_mask(mask.transpose(0, 1).contiguous())
    assert torch.equal(topology.t_indptr, swapped.indptr)
    assert torch.equal(topology.t_cols, swapped.cols)
    assert torch.equal(topology.pack(dense)[topology.t_perm.long()], swapped.pack(dense.transpose(0, 1)))


def test_pack_and_unpack() -> None:
    topology = Topology.from_mask(random_mask((4, 3, 3, 3), 0.4))
    dense = torch.randn(4, 3, 3, 3)
    assert torch.equal(topology.unpack(topology.pack(dense)), dense * topology.mask())


def test_index_map_pairs_the_weights_active_in_both() -> None:
    old, new = (Topology.from_mask(random_mask((6, 5), 0.5, seed)) for seed in (1, 2))
    values = torch.randn(old.nnz)
    source, target = old.index_map(new)
    moved = torch.zeros(new.nnz)
    moved[target] = values[source]
    assert torch.equal(new.unpack(moved), old.unpack(values) * new.mask())


def test_index_map_with_nothing_left() -> None:
    old, none = (Topology.from_mask(random_mask((6, 5), d)) for d in (0.5, 0.0))
    assert old.index_map(none)[0].numel() == 0
    assert none.index_map(old)[1].numel() == 0


def test_properties() -> None:
    topology = Topology.from_mask(torch.tensor([[True, False], [True, True], [False, False]])).with_transpose()
    assert (topology.rows, topology.channels, topology.kernel) == (3, 2, (1, 1))
    assert (topology.numel, topology.nnz, topology.density) == (6, 3, 0.5)
    assert topology.indptr.tolist() == [0, 1, 3, 3]
    assert topology.cols.tolist() == [0, 0, 1]
    assert topology.t_indptr.tolist() == [0, 2, 3]
    assert topology.t_cols.tolist() == [0, 1, 1]
    assert topology.t_perm.tolist() == [0, 1, 2]
    assert topology.to("cpu") is topology


def test_granularity_keeps_groups_of_rows() -> None:
    groups = random_mask((3, 4, 3, 3), 0.3)
    mask = groups.repeat_interleave(4, 0)
    topology = Topology.from_mask(mask, granularity=4)
    topology.validate()
    assert topology.granularity == 4
    assert torch.equal(topology.mask(), mask)
    assert torch.equal(topology.flat(), mask.reshape(-1).nonzero().reshape(-1))
    assert torch.equal(topology.groups(), groups.reshape(-1).nonzero().reshape(-1))
    again = Topology.from_flat(topology.flat(), topology.shape, 4)
    assert torch.equal(again.cols, topology.cols)
    assert topology.with_transpose() is topology


def test_groups_of_rows_have_one_list() -> None:
    """Shape (4, 3), V = 2: list 0 has columns 0 and 2, list 1 column 1. Values: row 0, row 1, row 2, row 3."""
    mask = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]).bool()
    topology = Topology.from_mask(mask, 2)
    assert topology.indptr.tolist() == [0, 2, 3]
    assert topology.cols.tolist() == [0, 2, 1]
    assert (topology.nnz, topology.rows, topology.density) == (6, 4, 0.5)
    assert topology.row_starts().tolist() == [0, 2, 4, 5, 6]
    assert topology.group_of_value().tolist() == [0, 1, 0, 1, 2, 2]
    assert topology.flat().tolist() == [0, 2, 3, 5, 7, 10]


def test_compact_columns_are_int16_where_they_fit_and_the_transpose_is_not_kept() -> None:
    topology = Topology.from_mask(random_mask((3, 2**15), 0.001)).with_transpose()
    small = topology.in_memory("compact")
    assert (small.cols.dtype, small.t_cols) == (torch.int16, None)
    assert torch.equal(small.flat(), topology.flat())
    assert torch.equal(small.mask(), topology.mask())
    assert small.in_memory("compact") is small
    small.validate()
    wide = small.in_memory("fast")
    assert torch.equal(wide.cols, topology.cols)
    assert wide.in_memory("fast") is wide
    long = Topology.from_mask(random_mask((3, 2**15 + 1), 0.001)).with_transpose().in_memory("compact")
    assert (long.cols.dtype, long.t_cols) == (torch.int32, None)
    with pytest.raises(ValueError, match="memory must be 'fast' or 'compact'"):
        topology.in_memory("small")


MASK = random_mask((4, 6), 0.5)
GOOD = Topology.from_mask(MASK).with_transpose()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: Topology.from_mask(MASK.float()), "must be bool"),
        (lambda: Topology.from_mask(MASK[0]), r"\(N, C\)"),
        (lambda: Topology.from_mask(MASK, granularity=3), "divide the 4 rows"),
        (lambda: Topology.from_mask(MASK, granularity=2), "2 rows of a group"),
        (lambda: Topology.from_flat(torch.tensor([3, 3]), (2, 2)), "strictly increasing"),
        (lambda: Topology.from_flat(torch.tensor([4]), (2, 2)), "outside 0 to 3"),
        (lambda: Topology.from_flat(torch.tensor([1], dtype=torch.int32), (2, 2)), "int64"),
        (lambda: Topology.from_flat(torch.tensor([0]), (2, 2), 2), "2 rows of a group"),
        (lambda: Topology.from_flat(torch.tensor([0]), (2**16, 2**15)), "2\\^31"),
        (lambda: GOOD.pack(torch.zeros(2, 2)), "dense has shape"),
        (lambda: GOOD.unpack(torch.zeros(1)), "values has shape"),
        (lambda: GOOD.index_map(Topology.from_mask(MASK.T)), "equal dense shapes"),
        (lambda: replace(GOOD, cols=GOOD.cols.flip(0)).validate(), "strictly increasing"),
        (lambda: replace(GOOD, cols=GOOD.cols + 9).validate(), "outside 0 to 5"),
        (lambda: replace(GOOD, cols=GOOD.cols.long()).validate(), "cols must be int32 or int16"),
        (lambda: replace(GOOD, indptr=GOOD.indptr[1:]).validate(), "indptr must have 5"),
        (lambda: replace(GOOD, indptr=GOOD.indptr.flip(0)).validate(), "must rise from 0"),
        (lambda: replace(GOOD, t_perm=GOOD.t_perm.flip(0)).validate(), "t_perm is not the transpose"),
    ],
)
def test_bad_input_gets_one_sentence(broken, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        broken()
