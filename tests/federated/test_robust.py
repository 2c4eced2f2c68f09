import random
from collections.abc import Mapping

import pytest
import torch

from fedsparse.federated.robust import Aggregation, Krum, Median, Trimmed
from fedsparse.federated.total import Total
from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Section, Values


def values(*numbers: float) -> dict[str, Section]:
    return {"parameters": Values(torch.tensor(numbers))}


def total_of(kind: Total, reports: list[Mapping[str, Section]], samples: int = 1) -> Total:
    for client, sections in enumerate(reports):
        kind.add(client, samples, sections)
    return kind


REPORTS = [values(1, 10), values(2, 20), values(3, 30), values(4, 40), values(1e6, -1e6)]


def test_median_by_hand() -> None:
    """Of five the third, of four the mean of the second and the third; samples do not weigh."""
    assert total_of(Median(5), REPORTS).mean("parameters").tolist() == [3, 20]
    assert total_of(Median(4), REPORTS[:4]).mean("parameters").tolist() == [2.5, 25]
    weighted = Median(103)
    for client, (sections, samples) in enumerate(zip(REPORTS[:3], (1, 2, 100))):
        weighted.add(client, samples, sections)
    assert weighted.mean("parameters").tolist() == [2, 20]
    assert (weighted.accepted, weighted.clients) == (103, [0, 1, 2])


def test_trimmed_by_hand() -> None:
    """A fifth of five: without the lowest and the highest; a tenth of five: nothing is cut."""
    assert total_of(Trimmed(5, trim=0.2), REPORTS).mean("parameters").tolist() == [3, 20]
    assert total_of(Trimmed(5, trim=0.4), REPORTS).mean("parameters").tolist() == [3, 20]
    uncut = total_of(Trimmed(5, trim=0.1), REPORTS).mean("parameters")
    assert uncut.tolist() == [(10 + 1e6) / 5, (100 - 1e6) / 5]


def test_krum_by_hand() -> None:
    """0, 1, 3, 7 and 1000 on a line, one attacker: each is judged by its 5 - 1 - 2 = 2 nearest. 1: 1 + 4 = 5 is least
    (0: 1 + 9, 3: 4 + 9, 7: 16 + 36)."""
    krum = total_of(Krum(5, attackers=1), [values(x) for x in (0, 3, 1, 7, 1000)])
    assert isinstance(krum, Krum)
    assert krum.chosen() == 2
    assert krum.mean("parameters").tolist() == [1]


def test_coordinates_count_only_who_holds_them() -> None:
    """0: three hold it (1, 5, 100): 5; 1: two (2, 4): 3; 2: one; 3: nobody. Shares of samples 1, 1, 2 of 4."""
    t, f = True, False
    reports = [
        Masked(torch.tensor([t, t, f, f]), torch.tensor([1.0, 2.0])),
        Masked(torch.tensor([t, t, t, f]), torch.tensor([5.0, 4.0, 9.0])),
        Masked(torch.tensor([t, f, f, f]), torch.tensor([100.0])),
    ]
    median = Median(4)
    for client, (section, samples) in enumerate(zip(reports, (1, 1, 2))):
        median.add(client, samples, {"weights": section})
    places, middle, share = median.masked("weights")
    assert places.tolist() == [0, 1, 2]
    assert middle.tolist() == [5, 3, 9]
    assert share.tolist() == [1, 0.5, 0.25]


def test_pairs_take_the_middle_of_what_was_sent_times_the_share_that_sent_it() -> None:
    """Index 4: 1, 3, 1e6 of four clients: 3 * 3/4; index 7: one of four: 8 / 4."""
    sent = [([4], [1.0]), ([4, 7], [3.0, 8.0]), ([4], [1e6]), ([], [])]
    reports = [{"g": Pairs(torch.tensor(i, dtype=torch.int64), torch.tensor(v), 9)} for i, v in sent]
    indices, middle = total_of(Median(4), reports).pairs("g")
    assert indices.tolist() == [4, 7]
    assert middle.tolist() == [2.25, 2.0]


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum"])
def test_masks_and_sets_stay_sums_weighted_by_samples(rule: str) -> None:
    total = Aggregation(rule=rule).total(4)  # type: ignore[arg-type]
    for client, (bit, samples) in enumerate(((True, 1), (False, 3))):
        sections = {"m": Bitmap(torch.tensor([bit])), "i": Indices(torch.tensor([client]), 2)}
        total.add(client, samples, values(1.0) | sections)
    assert total.mean("m").tolist() == [0.25]
    assert total.pairs("i")[1].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum"])
def test_a_minority_cannot_move_the_model_far_where_the_mean_is_lost(rule: str) -> None:
    """Honest reports within 0.1 of 1; two of nine send 10^5: the result stays within the honest reports."""
    generator = torch.Generator().manual_seed(0)
    honest = [{"parameters": Values(1 + 0.2 * (torch.rand(50, generator=generator) - 0.5))} for _ in range(7)]
    bad = [{"parameters": Values(torch.full((50,), 1e5))} for _ in range(2)]
    aggregation = Aggregation(rule=rule, trim=0.25, attackers=2)  # type: ignore[arg-type]
    kept = total_of(aggregation.total(9), honest + bad).mean("parameters")
    assert bool((kept - 1).abs().max() <= 0.1 + 1e-6)
    assert bool((total_of(Total(9), honest + bad).mean("parameters") > 1e4).all())


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum"])
def test_any_order_of_arrival_gives_the_same_bits(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    reports = list(enumerate({"parameters": Values(torch.randn(99, generator=generator))} for _ in range(8)))
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(reports)
        total = Aggregation(rule=rule).total(8)  # type: ignore[arg-type]
        for client, sections in reports:
            total.add(client, 1, sections)
        found.append(total.mean("parameters"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_many_pieces_are_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [{"parameters": Values(torch.randn(31, generator=torch.Generator().manual_seed(k)))} for k in range(5)]
    whole = total_of(Median(5), reports).mean("parameters")
    monkeypatch.setattr("fedsparse.federated.robust.PIECE", 20)
    assert torch.equal(total_of(Median(5), reports).mean("parameters"), whole)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rule": "sum"}, "rule is 'sum' but must be one of mean, median, trimmed, krum"),
        ({"trim": 0.5}, "trim is 0.5 but must be at least 0 and below 0.5"),
        ({"attackers": -1}, "attackers is -1 but must be at least 0"),
        ({"norm_bound": 0.0}, "norm_bound is 0.0 but must be greater than 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Aggregation(**settings)  # type: ignore[arg-type]


def test_no_result_without_a_report() -> None:
    for kind in (Median(1), Krum(1)):
        with pytest.raises(ValueError, match="no report"):
            kind.mean("parameters")
