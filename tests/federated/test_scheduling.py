"""Who gets which client: the largest first, and none to a rank that would finish it later than another could."""

import math
import time
from types import SimpleNamespace

import pytest

from fedsparse.federated.experiment import Failures
from fedsparse.federated.jobs import Job, Order
from fedsparse.federated.mpi_workers import MPIWorkers
from fedsparse.federated.scheduling import Pace
from fedsparse.federated.workers import Tag


def measured(**seconds: float) -> Pace:
    pace = Pace()
    for rank, each in seconds.items():
        for _ in range(2):  # the first only warms up
            pace.note(int(rank[1:]), 10, 10 * each)
    return pace


def test_unmeasured_ranks_get_the_largest_client_each() -> None:
    pace = Pace()
    assert pace.choose(1, [5, 10, 20], {}) == 2
    assert pace.choose(2, [5, 10], {1: pace.expected(1, 20)}) == 1


def test_the_first_client_of_a_rank_is_not_measured() -> None:
    pace = Pace()
    pace.note(1, 10, 50.0)
    assert pace.expected(1, 10) == pace.expected(2, 10) == 0.01
    pace.note(1, 10, 1.0)
    assert pace.expected(1, 10) == 1.0
    pace.note(1, 10, 3.0)
    assert pace.expected(1, 10) == 2.0, "(1 + 3) / 2"
    assert pace.expected(2, 10) == 2.0, "the mean of those that were measured"


def test_a_slow_rank_gets_a_client_that_no_faster_one_would_finish_before() -> None:
    """Rank 2 needs 1 s a sample, rank 1 0.1 s and is free in 5 s: 20 samples are done in 20 s or in 7 s, 5 in 5 or 5.5."""
    pace = measured(r1=0.1, r2=1.0)
    assert pace.choose(2, [5, 20], {1: 5.0}) == 0
    assert pace.choose(2, [20], {1: 5.0}) is None
    assert pace.choose(2, [20], {}) == 0, "an idle rank never waits for nobody"
    assert pace.choose(1, [5, 20], {2: 1.0}) == 1


def test_an_overdue_rank_counts_as_busy_for_as_long_again() -> None:
    """Rank 2 is 5 % slower: 10 samples take it 1.05 s, and rank 1 1 s after it is free."""
    pace = measured(r1=0.1, r2=0.105)
    assert pace.choose(2, [10] * 5, {1: -300.0}) == 4, "rank 1 has stopped"
    assert pace.choose(2, [10] * 5, {1: -0.06}) == 4, "1.05 s, or 0.06 s and 1 s"
    assert pace.choose(2, [10] * 5, {1: -0.04}) is None, "rank 1 may be done any moment: 1.04 s"


@pytest.mark.parametrize(("wanted", "given"), [(True, None), (False, 0)])
def test_a_rank_at_work_for_what_nobody_waits_for_starves_none(wanted: bool, given: int | None) -> None:
    """Rank 1 would be free in about 0.5 s and do client 0 1 s later; rank 2 needs 2 s."""
    link = SimpleNamespace(size=3, lost=set())
    workers = MPIWorkers(link, [10], Failures())  # type: ignore[arg-type]
    workers.paces[""] = measured(r1=0.1, r2=0.2)
    workers.orders[1] = Order(7, 0, "", time.monotonic() - 0.5, wanted)
    workers._job = Job(Tag.TRAIN, [0], "", 1, math.inf)
    order = workers._next_for(2)
    assert (None if order is None else order.client) == given


def test_all_clients_are_done_and_sooner_than_by_size_alone() -> None:
    """Simulated: one rank ten times slower; by size alone it takes the second largest client, 90 s."""
    pace, sizes = measured(r1=0.1, r2=0.1, r3=1.0), sorted([100, 90, 80, 30, 20, 10])
    now, busy, end = 0.0, {}, 0.0
    while sizes:
        for rank in (1, 3, 2):
            if rank not in busy and sizes:
                at = pace.choose(rank, sizes, {other: until - now for other, until in busy.items()})
                if at is not None:
                    busy[rank] = now + pace.expected(rank, sizes.pop(at))
        now = min(busy.values())
        end = max(busy.values())
        busy = {rank: until for rank, until in busy.items() if until > now}
    assert end < 25
