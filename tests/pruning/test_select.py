import pytest
import torch

from fedsparse.pruning import (
    active_groups,
    from_groups,
    group_sums,
    highest,
    highest_of,
    keep_largest,
    lowest,
    lowest_preferring,
    lowest_values,
    masks_from_scores,
    prune_and_grow,
    top_mask,
    with_groups,
    without_groups,
)
from fedsparse.topology import Topology


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0, 0.0])
    assert highest(scores, 2).tolist() == [1, 2]
    assert lowest(scores, 1).tolist() == [4]
    assert top_mask(torch.ones(2, 3), 4).flatten().tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_highest_of_parts_are_those_of_the_whole(size: int) -> None:
    """0 1 1 5 5 5 2 0 1 9: the four highest are 9 and the 5s; of 1s the first come first."""
    scores = torch.tensor([0.0, 1, 1, 5, 5, 5, 2, 0, 1, 9])
    for count, wanted in ((4, [3, 4, 5, 9]), (6, [1, 3, 4, 5, 6, 9]), (0, []), (10, list(range(10)))):
        assert highest(scores, count).tolist() == wanted
        assert highest_of(iter(scores.split(size)), count).tolist() == wanted


def test_prune_and_grow_by_hand() -> None:
    """2 x 4, active 0, 1, 5, 6 with |w| 2, 1, 1, 3; grow 3 and 4: the two lowest are 1 (index 1) and 1 (index 5)."""
    topology = from_groups(torch.tensor([0, 1, 5, 6]), (2, 4))
    new = prune_and_grow(topology, torch.tensor([2.0, -1.0, 1.0, 3.0]), torch.tensor([4, 3]))
    assert new.flat().tolist() == [0, 3, 4, 6]


def test_of_equal_weights_the_lower_index_is_pruned() -> None:
    topology = from_groups(torch.tensor([0, 1, 2]), (1, 6))
    assert prune_and_grow(topology, torch.ones(3), torch.tensor([5])).flat().tolist() == [1, 2, 5]


def test_prune_and_grow_refuses_active_weights_and_too_many() -> None:
    topology = from_groups(torch.tensor([0, 1]), (2, 4))
    with pytest.raises(ValueError, match="active already"):
        prune_and_grow(topology, torch.ones(2), torch.tensor([1]))
    with pytest.raises(ValueError, match="only 2 are active"):
        prune_and_grow(topology, torch.ones(2), torch.tensor([3, 4, 5]))


def test_groups_of_two_rows_by_hand() -> None:
    """Shape (4, 3), V = 2: group g covers rows 2(g // 3) and 2(g // 3) + 1 at column g % 3.

    Groups 1 and 3 are the weights (0, 1), (1, 1) and (2, 0), (3, 0): flat 1, 4 and 6, 9.
    Values in that order 1, -5, 2, 3: summed |w| are 6 and 5, so growing one group prunes group 3.
    """
    topology = from_groups(torch.tensor([3, 1]), (4, 3), granularity=2)
    assert topology.flat().tolist() == [1, 4, 6, 9]
    assert active_groups(topology).tolist() == [1, 3]
    values = torch.tensor([1.0, -5.0, 2.0, 3.0])
    assert group_sums(topology, values.abs()).tolist() == [6.0, 5.0]
    grown = prune_and_grow(topology, values, torch.tensor([5]))
    assert grown.flat().tolist() == [1, 4, 8, 11]
    assert grown.granularity == 2


def test_the_preferred_come_first_and_the_rest_from_all() -> None:
    """Scores 5 1 2 2 9 0, preferred 0 2 3 4.

    share 2 of 3: 2 and 3 (score 2 each), then the lowest of the others, 5 (score 0). share 1 of 2: of the equal scores
    of 2 and 3 the lower position 2, then 5. share 0: 1 and 5. share 4 of 5: 0, 2, 3, 4, then 5. No preferred: 1 and 5.
    """
    scores = torch.tensor([5.0, 1.0, 2.0, 2.0, 9.0, 0.0])
    preferred = torch.tensor([True, False, True, True, True, False])
    assert lowest_preferring(scores, preferred, 2, 3).tolist() == [2, 3, 5]
    assert lowest_preferring(scores, preferred, 1, 2).tolist() == [2, 5]
    assert lowest_preferring(scores, preferred, 0, 2).tolist() == [1, 5]
    assert lowest_preferring(scores, preferred, 4, 5).tolist() == [0, 2, 3, 4, 5]
    assert lowest_preferring(scores, torch.zeros(6, dtype=torch.bool), 2, 2).tolist() == [1, 5]
    assert lowest_preferring(scores, preferred, 2, 0).tolist() == []


@pytest.mark.parametrize("V", [1, 2])
def test_groups_are_dropped_added_and_kept_by_size(V: int) -> None:
    """Groups 1, 3, 4 of a (2 V, 3) weight with summed |w| 2 V, 5 V, 2 V: of the equal ones group 1 stays."""
    topology = from_groups(torch.tensor([1, 3, 4]), (2 * V, 3), V)
    sizes = {1: -2.0, 3: 5.0, 4: 2.0}
    dense = torch.zeros(2, 3)
    for group, size in sizes.items():
        dense[group // 3, group % 3] = size
    values = topology.pack(dense.repeat_interleave(V, 0))
    assert active_groups(without_groups(topology, torch.tensor([0, 2]))).tolist() == [3]
    assert active_groups(with_groups(topology, torch.tensor([5, 0]))).tolist() == [0, 1, 3, 4, 5]
    assert active_groups(keep_largest(topology, values, 2)).tolist() == [1, 3]
    assert keep_largest(topology, values, 2).granularity == V
    with pytest.raises(ValueError, match="only 3 are active"):
        keep_largest(topology, values, 4)


def test_top_mask_of_groups_is_exact_and_whole() -> None:
    scores = torch.rand(16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = top_mask(scores, 40, granularity=4)
    assert int(mask.sum()) == 40
    assert torch.equal(mask[0::4], mask[3::4])
    Topology.from_mask(mask, 4).validate()


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top_mask(torch.tensor([[1.0, float("nan")]]), 1)


def test_global_masks_keep_the_highest_scores_of_all_layers() -> None:
    """6 weights at d = .5: the three highest scores are 9, 8 (a) and 7 (b)."""
    scores = {"a": torch.tensor([[9.0, 8.0, 1.0]]), "b": torch.tensor([[2.0, 7.0, 3.0]])}
    masks = masks_from_scores(scores, 0.5, "global")
    assert masks["a"].tolist() == [[True, True, False]]
    assert masks["b"].tolist() == [[False, True, False]]


def test_random_masks_of_every_rule_have_the_exact_total() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = {"a": torch.rand(8, 3, 3, 3, generator=generator), "b": torch.rand(16, 8, generator=generator)}
    for rule in ("uniform", "er", "erk", "global"):
        masks = masks_from_scores(scores, 0.3, rule)
        assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * (216 + 128))


def test_lowest_values_are_positions_in_values() -> None:
    """Single weights: .5 at position 1, then the first of the two ones. Groups of two rows, sums 4, 2, 4: column 3."""
    single = from_groups(torch.tensor([0, 3, 5, 11]), (3, 4))
    assert lowest_values(single, torch.tensor([1.0, -0.5, 1.0, -4.0]), 2).tolist() == [0, 1]
    groups = from_groups(torch.tensor([1, 3, 6]), (4, 4), granularity=2)
    assert lowest_values(groups, torch.tensor([1.0, -1.0, 3.0, 1.0, 2.0, 2.0]), 1).tolist() == [1, 3]
