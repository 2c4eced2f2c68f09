import itertools

import pytest
import torch

from fedsparse.pruning import active_groups, from_groups, reconfigure
from fedsparse.topology import Topology


def layer(active: list[int], shape: tuple[int, int], granularity: int = 1) -> Topology:
    return from_groups(torch.tensor(active), shape, granularity)


def kept(topologies: dict[str, Topology]) -> dict[str, list[int]]:
    return {name: active_groups(t).tolist() for name, t in topologies.items()}


def test_two_layers_by_hand() -> None:
    """Layer a: 2 x 2, t = 1; layer b: 1 x 4, t = 2; G = 1, c = 3; half of the active weights are free.

    a active 0 1 2 3 with |w| 4 1 3 2: protected 0 and 2. b active 0 2 with |w| 1 5: protected 2.
    g^2      a 2 6 0 1     b 8 3 2 4
    Gamma of the protected: (1 + 2 + 0 + 2) / (3 + 1 + 1 + 2) = 5/7
    ratios   a1 6, b0 4, b3 2, b1 1.5, a3 1
    a1: 6 >= .71, Gamma 11/8; b0: 4 >= 1.4, 19/10; b3: 2 >= 1.9, 23/12 = 1.92; b1: 1.5 < 1.92, the end.
    """
    topologies = {"a": layer([0, 1, 2, 3], (2, 2)), "b": layer([0, 2], (1, 4))}
    values = {"a": torch.tensor([4.0, -1, 3, 2]), "b": torch.tensor([1.0, -5])}
    squares = torch.tensor([2.0, 6, 0, 1, 8, 3, 2, 4, 1])
    seconds = torch.tensor([1.0, 2.0, 3.0])
    new = reconfigure(topologies, values, squares, seconds, free=0.5)
    assert kept(new) == {"a": [0, 1, 2], "b": [0, 2, 3]}
    capped = reconfigure(topologies, values, squares, seconds, free=0.5, max_density=5 / 8)
    assert kept(capped) == {"a": [0, 1, 2], "b": [0, 2]}, "room for two beside the three protected"
    tight = reconfigure(topologies, values, squares, seconds, free=0.5, max_density=0.1)
    assert kept(tight) == {"a": [0, 2], "b": [2]}, "the protected stay"
    assert kept(reconfigure(topologies, values, squares, seconds, free=0.0))["a"] == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_no_set_that_holds_the_protected_has_a_greater_gamma(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    topologies = {"a": layer([0, 3, 4], (2, 3)), "b": layer([1, 2], (2, 2))}
    values = {name: torch.randn(t.nnz, generator=generator) for name, t in topologies.items()}
    squares = torch.rand(11, generator=generator).square()
    seconds = torch.rand(3, generator=generator) + 0.01
    protected = kept(reconfigure(topologies, values, torch.zeros(11), seconds, free=0.67))
    fixed = [*protected["a"], *(6 + i for i in protected["b"])]
    assert len(fixed) == 2, "floor(.67 * 3) and floor(.67 * 2) are free"

    def gamma(groups: list[int]) -> float:
        cost = sum(float(seconds[0 if i < 6 else 1]) for i in groups)
        return (float(squares[10]) + sum(float(squares[i]) for i in groups)) / (float(seconds[2]) + cost)

    others = [i for i in range(10) if i not in fixed]
    sets = [[*fixed, *s] for n in range(len(others) + 1) for s in itertools.combinations(others, n)]
    new = kept(reconfigure(topologies, values, squares, seconds, free=0.67))
    assert gamma([*new["a"], *(6 + i for i in new["b"])]) == pytest.approx(max(map(gamma, sets)), rel=1e-6)


def test_groups_of_two_rows_are_scored_by_sums_and_cost_twice() -> None:
    """V = 2, 4 x 2: groups 0 .. 3; active 0 and 3 with |w| sums 1 and 4, one free: 3 is protected. c = 4, t = 1.

    Gamma of 3: 8 / (4 + 2) = 1.33; ratios are g^2 / 2: group 0 1.5, group 1 1, group 2 2.
    Group 2: 12 / 8 = 1.5; group 0: 1.5 >= 1.5, 15 / 10 = 1.5; group 1: 1 < 1.5.
    """
    topologies = {"a": layer([0, 3], (4, 2), 2)}
    values = {"a": torch.tensor([0.5, -0.5, 2.0, 2.0])}
    new = reconfigure(topologies, values, torch.tensor([3.0, 2, 4, 8, 0]), torch.tensor([1.0, 4.0]), free=0.5)
    assert kept(new) == {"a": [0, 2, 3]}
    assert (new["a"].granularity, new["a"].nnz) == (2, 6)


def test_ties_go_to_the_lower_index_and_no_gradient_adds_nothing() -> None:
    topologies = {"a": layer([0, 1], (1, 6))}
    values = {"a": torch.tensor([1.0, 1.0])}
    equal = torch.tensor([0.0, 0, 1, 1, 1, 1, 0])
    seconds = torch.tensor([1.0, 0.0])
    assert kept(reconfigure(topologies, values, equal, seconds, 0.5, max_density=0.5)) == {"a": [0, 2, 3]}
    nothing = reconfigure(topologies, values, torch.zeros(7), seconds, 0.5)
    assert kept(nothing) == {"a": [0]}, "of equal |w| the lower index is protected"


def test_a_wrong_number_of_squares_or_seconds_is_refused() -> None:
    topologies, values = {"a": layer([0], (1, 3))}, {"a": torch.ones(1)}
    with pytest.raises(ValueError, match="one more squares and seconds, not 3 and 2"):
        reconfigure(topologies, values, torch.ones(3), torch.ones(2), 0.3)
