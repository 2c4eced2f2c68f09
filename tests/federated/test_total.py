import random

import numpy as np
import pytest
import torch

from fedsparse.federated import Total
from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Values, decode, encode


def test_weighted_mean_by_hand() -> None:
    """n = 1 and 3: (1 * 4 + 3 * 2) / 4 = 2.5."""
    total = Total(declared=4)
    total.add(0, 1, {"x": Values(torch.tensor([4.0, 0.0]))})
    total.add(1, 3, {"x": Values(torch.tensor([2.0, -1.0]))})
    assert total.mean("x").tolist() == [2.5, -0.75]


def test_a_client_that_is_missing_leaves_the_mean_of_the_rest() -> None:
    """Declared 10, accepted 1 and 3: the same mean as without the missing 6."""
    total = Total(declared=10)
    total.add(0, 1, {"x": Values(torch.tensor([4.0]))})
    total.add(1, 3, {"x": Values(torch.tensor([2.0]))})
    assert total.mean("x").item() == pytest.approx(2.5, abs=1e-11)


def test_pairs_count_what_is_missing_as_zero() -> None:
    """Shares 1/4 and 3/4: index 2: 4/4 = 1; index 3: (-4 + 3 * 2) / 4 = 0.5; index 9: 3 * 1 / 4 = 0.75."""
    total = Total(declared=4)
    total.add(0, 1, {"g": Pairs(torch.tensor([2, 3]), torch.tensor([4.0, -4.0]), 12)})
    total.add(1, 3, {"g": Pairs(torch.tensor([3, 9]), torch.tensor([2.0, 1.0]), 12)})
    indices, means = total.pairs("g")
    assert indices.tolist() == [2, 3, 9]
    assert means.tolist() == [1.0, 0.5, 0.75]


def test_masked_values_average_where_somebody_has_them() -> None:
    """n = 1 and 3; coordinate 0: both (1 + 9) / 4; 1: first only; 2: second only; 3: nobody."""
    total = Total(declared=4)
    total.add(0, 1, {"w": Masked(torch.tensor([True, True, False, False]), torch.tensor([1.0, 5.0]))})
    total.add(1, 3, {"w": Masked(torch.tensor([True, False, True, False]), torch.tensor([3.0, 7.0]))})
    places, mean, share = total.masked("w")
    assert places.tolist() == [0, 1, 2]
    assert mean.tolist() == [2.5, 5.0, 7.0]
    assert share.tolist() == [1.0, 0.25, 0.75]


def test_indices_count_their_clients() -> None:
    total = Total(declared=4)
    total.add(0, 1, {"i": Indices(torch.tensor([5]), 8)})
    total.add(1, 3, {"i": Indices(torch.tensor([5, 6]), 8)})
    indices, share = total.pairs("i")
    assert indices.tolist() == [5, 6]
    assert share.tolist() == [1.0, 0.75]


def test_sums_of_two_ranks_have_the_bits_of_one() -> None:
    """Seven clients, by turns on one of two ranks; one rank has coordinates that the other lacks."""
    generator = np.random.default_rng(0)
    one, ranks, both = Total(28), [Total(28), Total(28)], Total(28)
    for client in range(7):
        mask = generator.random(9) < 0.5
        sections = {
            "x": Values(generator.normal(size=5).astype(np.float32)),
            "y": Bitmap(generator.random(6) < 0.5),
            "g": Pairs(np.flatnonzero(mask), generator.normal(size=(mask.sum(), 2)).astype(np.float32), 9),
            "w": Masked(mask, generator.normal(size=mask.sum()).astype(np.float32)),
        }
        one.add(client, client + 1, sections)
        ranks[client % 2].add(client, client + 1, sections)
    for rank in ranks:
        sent = decode(encode("sum", 3, 1, rank.sections())).sections
        clients = sent.pop("clients")
        assert isinstance(clients, Values)
        assert clients.array.tolist() == rank.clients
        both.merge(sent)
    both.accepted = 28
    for name in ("x", "y"):
        assert torch.equal(both.mean(name), one.mean(name))
    for found, wanted in ((both.pairs("g"), one.pairs("g")), (both.masked("w"), one.masked("w"))):
        assert all(map(torch.equal, found, wanted))


def test_any_order_gives_the_same_bits() -> None:
    generator = np.random.default_rng(0)
    reports = []
    for client in range(20):
        indices = np.sort(generator.choice(1000, 50, replace=False))
        reports.append(
            (
                client,
                int(generator.integers(1, 500)),
                {
                    "x": Values(
                        (generator.standard_normal(300) * 10.0 ** generator.integers(-6, 3)).astype(np.float32)
                    ),
                    "g": Pairs(indices, generator.standard_normal((50, 2)).astype(np.float32), 1000),
                },
            )
        )
    outcomes = []
    for seed in range(3):
        order = reports.copy()
        random.Random(seed).shuffle(order)
        total = Total(declared=sum(samples for _, samples, _ in reports))
        for client, samples, sections in order:
            total.add(client, samples, sections)
        outcomes.append((total.mean("x"), *total.pairs("g")))
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcome))
    exact = sum(s["x"].array.astype(np.float64) * n for _, n, s in reports) / sum(n for _, n, _ in reports)
    assert np.abs(outcomes[0][0].numpy() - exact).max() < 1e-4


def test_no_mean_without_a_report() -> None:
    total = Total(declared=4)
    total._dense["x"] = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="no report"):
        total.mean("x")
