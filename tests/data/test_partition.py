import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.data import partition

# Natural clients are not drawn: they have tests of their own.
KINDS = ("iid", "dirichlet", "shards", "quantity")
BALANCED = np.repeat(np.arange(10), 100)


def split(kind: str, labels: np.ndarray, clients: int, seed: int = 0, **asked: float) -> list[np.ndarray]:
    return partition(kind, labels, clients, np.random.default_rng(seed), **asked)


def assert_cover(parts: list[np.ndarray], samples: int, min_samples: int) -> None:
    assert min(len(part) for part in parts) >= min_samples
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(samples))


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(KINDS),
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    alpha=st.sampled_from([1e-300, 1e-8, 1e-3, 0.1, 0.5, 1.0, 100.0, 1e8]),
    shards=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    choice=st.data(),
)
def test_feasible_asks_are_met_and_repeat(
    kind: str, labels: list[int], alpha: float, shards: int, seed: int, choice: st.DataObject
) -> None:
    most = len(labels) // shards if kind == "shards" else len(labels)
    clients = choice.draw(st.integers(1, max(1, most)), label="clients")
    min_samples = choice.draw(st.integers(1, len(labels) // clients), label="min_samples")
    asked = {"alpha": alpha, "min_samples": min_samples, "classes_per_client": min(shards, len(labels))}
    parts = split(kind, np.array(labels), clients, seed, **asked)
    assert len(parts) == clients
    assert_cover(parts, len(labels), min_samples)
    again = split(kind, np.array(labels), clients, seed, **asked)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_as_many_clients_as_samples(kind: str) -> None:
    assert_cover(split(kind, BALANCED, 1000, alpha=1e-3), 1000, 1)


def test_as_many_shards_as_samples() -> None:
    assert_cover(split("shards", BALANCED, 500), 1000, 2)


def test_tiny_alpha_with_many_clients_and_a_tight_minimum() -> None:
    """Each class goes to about one client: 10 hold everything, and 180 get all they have by repair."""
    assert_cover(split("dirichlet", BALANCED, 190, alpha=1e-3, min_samples=5), 1000, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_only(kind: str) -> None:
    assert_cover(split(kind, np.zeros(50, dtype=np.int64), 7, min_samples=3), 50, 3)


def test_the_largest_ask_ends_within_seconds() -> None:
    labels = np.repeat(np.arange(10), 6000)
    start = time.perf_counter()
    assert_cover(split("dirichlet", labels, 60000, alpha=1e-3), 60000, 1)
    assert time.perf_counter() - start < 20


def test_iid_parts_are_equal_and_mixed() -> None:
    parts = split("iid", BALANCED, 7)
    assert {len(part) for part in parts} == {142, 143}
    assert all(np.bincount(BALANCED[part], minlength=10).min() >= 5 for part in parts)


def test_dirichlet_skew_follows_alpha() -> None:
    """Largest label share of a client: near 1/10 for a large alpha, near 1 for a small one."""

    def dominance(alpha: float) -> float:
        labels = np.repeat(np.arange(10), 1000)
        counts = [np.bincount(labels[p], minlength=10) for p in split("dirichlet", labels, 10, alpha=alpha)]
        return float(np.mean([c.max() / c.sum() for c in counts]))

    assert dominance(1000.0) < 0.12
    assert 0.2 < dominance(0.5) < 0.7
    assert dominance(0.01) > 0.7


def test_dirichlet_shares_have_the_distribution_mean_and_variance() -> None:
    """A share of Dirichlet(a, ..., a) over m clients has mean 1/m and variance (m - 1) / (m^2 (m a + 1)).

    m = 4, a = 0.5: 0.25 and 3 / 48 = 0.0625, over 400 draws of one class of 10,000.
    """
    rng = np.random.default_rng(1)
    labels = np.zeros(10_000, dtype=np.int64)
    shares = np.array([[len(p) for p in partition("dirichlet", labels, 4, rng)] for _ in range(400)]) / 10_000
    assert shares.mean(0) == pytest.approx([0.25] * 4, abs=0.04)
    assert shares.var(0) == pytest.approx([0.0625] * 4, abs=0.012)


def test_repair_moves_only_what_is_missing() -> None:
    """Without a minimum in the way 1,000 samples of one class at alpha 1e-300 go to one client; each of the 19
    others gets exactly the 3 that it must have."""
    sizes = sorted(
        len(part) for part in split("dirichlet", np.zeros(1000, dtype=np.int64), 20, alpha=1e-300, min_samples=3)
    )
    assert sizes == [3] * 19 + [943]


def test_shards_hold_few_classes_and_equal_counts() -> None:
    """100 clients with 2 shards of 5 from classes of 100: no shard crosses a border, so at most 2 labels each."""
    parts = split("shards", BALANCED, 100)
    assert {len(part) for part in parts} == {10}
    assert max(len(np.unique(BALANCED[part])) for part in parts) == 2
    assert max(len(np.unique(BALANCED[part])) for part in split("shards", BALANCED, 100, classes_per_client=1)) == 1


def test_seeds_differ() -> None:
    for kind in KINDS:
        first, second = split(kind, BALANCED, 5, seed=1), split(kind, BALANCED, 5, seed=2)
        assert not all(np.array_equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(
    ("kind", "clients", "asked", "sentence"),
    [
        ("random", 5, {}, "partition kind must be one of iid, dirichlet, shards, quantity, natural, not 'random'"),
        ("iid", 0, {}, "clients must be at least 1, not 0"),
        ("iid", 5, {"min_samples": 0}, "min_samples must be at least 1, not 0"),
        ("shards", 5, {"classes_per_client": 0}, "classes_per_client must be at least 1, not 0"),
        ("dirichlet", 5, {"alpha": 0.0}, "alpha must be a finite number above 0, not 0.0"),
        ("dirichlet", 5, {"alpha": float("nan")}, "alpha must be a finite number above 0, not nan"),
        ("dirichlet", 5, {"alpha": float("inf")}, "alpha must be a finite number above 0, not inf"),
        ("iid", 1001, {}, "1001 clients with min_samples = 1 need 1001 samples, and there are 1000"),
        (
            "dirichlet",
            100,
            {"min_samples": 11},
            "100 clients with min_samples = 11 need 1100 samples, and there are 1000",
        ),
        (
            "shards",
            501,
            {},
            "501 clients with classes_per_client = 2 need 1002 shards with a sample each, and there are 1000 samples",
        ),
    ],
)
def test_impossible_asks_get_one_sentence(kind: str, clients: int, asked: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        split(kind, BALANCED, clients, **asked)


@pytest.mark.parametrize("labels", [np.zeros((4, 2), dtype=np.int64), np.zeros(4)])
def test_labels_of_the_wrong_kind_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels must be integers"):
        split("iid", labels, 2)


def test_quantity_gives_the_minimum_and_a_dirichlet_share_of_the_rest() -> None:
    parts = split("quantity", BALANCED, 5, alpha=0.3, min_samples=20)
    share = np.random.default_rng(0).dirichlet(np.full(5, 0.3))
    cuts = np.rint(np.cumsum(share) * (1000 - 5 * 20))
    assert [len(part) for part in parts] == (20 + np.diff(cuts, prepend=0)).astype(int).tolist()
    # Shuffled: every part of some size holds every class.
    assert all(len(np.unique(BALANCED[part])) == 10 for part in parts if len(part) > 100)


def test_quantity_skew_follows_alpha() -> None:
    def spread(alpha: float) -> float:
        sizes = [len(part) for part in split("quantity", BALANCED, 10, alpha=alpha)]
        return max(sizes) / 100

    assert spread(1e4) < 1.2
    assert spread(0.05) > 4


def test_contiguous_parts_are_runs_of_the_samples_in_order() -> None:
    parts = split("quantity", BALANCED, 6, alpha=0.5, min_samples=3, contiguous=True)
    assert np.array_equal(np.concatenate(parts), np.arange(1000))
    assert_cover(parts, 1000, 3)


def test_natural_clients_keep_their_samples() -> None:
    natural = np.array([2, 0, 1, 2, 2, 0])
    parts = split("natural", np.zeros(6, dtype=np.int64), 3, natural=natural)
    assert [part.tolist() for part in parts] == [[1, 5], [2], [0, 3, 4]]


def test_fewer_clients_get_whole_natural_clients_as_many_each() -> None:
    natural = np.repeat(np.arange(30), 5)
    parts = split("natural", np.zeros(150, dtype=np.int64), 7, natural=natural)
    assert_cover(parts, 150, 20)
    owners = [set(natural[part]) for part in parts]
    assert {len(names) for names in owners} == {4, 5}
    assert sum(len(names) for names in owners) == 30


@pytest.mark.parametrize(
    ("kind", "asked", "sentence"),
    [
        ("natural", {}, "needs a data set that says which client each sample is from"),
        ("natural", {"natural": np.arange(7)}, "a client for each of the 1000 samples"),
        ("natural", {"natural": np.arange(1000) % 3}, "there are 3 natural clients, .* at most that, not 5"),
        ("natural", {"natural": np.arange(1000) % 5, "min_samples": 200}, None),
        ("natural", {"natural": np.arange(1000) // 201, "min_samples": 200}, "client 4 has 196 samples"),
        ("iid", {"contiguous": True}, "contiguous is for partition kind 'quantity', not 'iid'"),
    ],
)
def test_natural_and_contiguous_asks(kind: str, asked: dict, sentence: str | None) -> None:
    if sentence is None:
        assert len(split(kind, BALANCED, 5, **asked)) == 5
        return
    with pytest.raises(ValueError, match=sentence):
        split(kind, BALANCED, 5, **asked)
