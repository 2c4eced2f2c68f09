import math

from fedsparse.pruning import Schedule


def test_adjustment_rounds_and_cosine() -> None:
    """interval 10, last 100: rounds 10, 20, ... 100; c(0) = 1, c(50) = 1/2, c(100) = 0, c(25) = (1 + cos(pi/4)) / 2."""
    schedule = Schedule(10, 100)
    assert [t for t in range(200) if schedule.adjusts(t)] == list(range(10, 101, 10))
    assert schedule.index(10) == 0
    assert schedule.index(30) == 2
    assert schedule.rate(50) == 0.5
    assert schedule.rate(100) == 0.0
    assert math.isclose(schedule.rate(25), (1 + math.sqrt(0.5)) / 2)


def test_every_round_may_be_one() -> None:
    assert [t for t in range(5) if Schedule(1, 3).adjusts(t)] == [1, 2, 3]


def test_other_decays() -> None:
    assert Schedule(1, 10, "constant").rate(7) == 1.0
    assert Schedule(1, 10, "linear").rate(7) == 1 - 0.7
