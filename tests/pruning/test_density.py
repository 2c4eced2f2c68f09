from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.pruning import apportion, layer_counts


def test_erk_by_hand() -> None:
    """Two convolutions, d = 0.25.

    a: (8, 4, 3, 3), 288 weights, raw (8+4+3+3)/288 = 18/288, so eps a-weights = 18 eps.
    b: (8, 8, 3, 3), 576 weights, raw 22/576: 22 eps. Total 864, kept round(216) = 216 = 40 eps, eps = 5.4:
    a 97.2, b 118.8; remainders .2 and .8: b gets the missing one: 97 and 119.
    """
    assert layer_counts({"a": (8, 4, 3, 3), "b": (8, 8, 3, 3)}, 0.25, "erk") == {"a": 97, "b": 119}


def test_er_and_uniform_by_hand() -> None:
    """(4, 2) and (4, 8): ER raw 6/8 and 12/32: 18 eps = 20 at d = .5 gives 6.67 and 13.33; uniform 4 and 16."""
    shapes = {"a": (4, 2), "b": (4, 8)}
    assert layer_counts(shapes, 0.5, "er") == {"a": 7, "b": 13}
    assert layer_counts(shapes, 0.5, "uniform") == {"a": 4, "b": 16}


def test_a_layer_over_density_one_becomes_dense_and_the_rest_is_solved_again() -> None:
    """(2, 1) and (100, 100) at d = .1: 1000 of 10002; ER raw 1.5 and .02: eps = 1000.2/203 makes a 7 > 1: a keeps 2, b 998."""
    assert layer_counts({"a": (2, 1), "b": (100, 100)}, 0.1, "er") == {"a": 2, "b": 998}


def test_granularity_counts_whole_groups() -> None:
    counts = layer_counts({"a": (16, 4, 3, 3), "b": (32, 16, 3, 3)}, 0.1, "erk", granularity=8)
    assert all(count % 8 == 0 for count in counts.values())
    assert sum(counts.values()) == 8 * round(0.1 * (16 * 36 + 32 * 144) / 8)


shapes = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(shapes, st.floats(1e-3, 1.0), st.sampled_from(["uniform", "er", "erk"]))
def test_the_total_is_exact_and_no_layer_overflows_or_vanishes(layers: dict, density: float, rule: str) -> None:
    counts = layer_counts(layers, density, rule)
    total = sum(prod(shape) for shape in layers.values())
    assert sum(counts.values()) == max(round(density * total), len(layers))
    assert all(1 <= counts[name] <= prod(shape) for name, shape in layers.items())


def test_apportion_follows_the_shares() -> None:
    """Shares 3 to 1 over equal layers of 100 at d = .2: 40 kept, 30 and 10."""
    assert apportion({"a": 3.0, "b": 1.0}, {"a": (10, 10), "b": (10, 10)}, 0.2) == {"a": 30, "b": 10}


@pytest.mark.parametrize(
    ("density", "rule", "granularity", "word"),
    [
        (0.0, "erk", 1, "density"),
        (1.5, "erk", 1, "density"),
        (0.1, "erdos", 1, "uniform"),
        (0.1, "erk", 3, "granularity"),
    ],
)
def test_bad_arguments_are_named(density: float, rule: str, granularity: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        layer_counts({"a": (8, 4)}, density, rule, granularity)
