"""Traffic counts what it is shown, and answers by any mix of direction, round and kind."""

import pytest

from fedsparse.comm import Traffic


@pytest.fixture
def traffic() -> Traffic:
    """Two rounds: a mask of 2 bytes and weights of 5 to three clients; reports of 7 and 8 bytes from two of them."""
    counted = Traffic()
    for round in (0, 1):
        counted.count("down", round, "mask", bytes(2), copies=3)
        counted.count("down", round, "weights", bytes(5), copies=3)
        counted.count("up", round, "report", bytes(7))
        counted.count("up", round, "report", bytes(8))
    return counted


def test_nothing_counted() -> None:
    assert (Traffic().bytes(), Traffic().messages()) == (0, 0)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (2 * (3 * 7 + 15), 2 * 8)),
        ({"direction": "down"}, (2 * 3 * 7, 2 * 6)),
        ({"direction": "up", "round": 1}, (15, 2)),
        ({"direction": "down", "round": 0, "kind": "mask"}, (6, 3)),
        ({"kind": "weights"}, (30, 6)),
        ({"direction": "up", "kind": "mask"}, (0, 0)),
        ({"round": 2}, (0, 0)),
    ],
)
def test_sums_over_what_is_left_out(traffic: Traffic, asked: dict, wanted: tuple[int, int]) -> None:
    assert (traffic.bytes(**asked), traffic.messages(**asked)) == wanted


def test_an_empty_message_and_no_copies_count_as_such() -> None:
    counted = Traffic()
    counted.count("up", 0, "report", b"")
    counted.count("up", 0, "report", bytes(9), copies=0)
    assert (counted.bytes(), counted.messages()) == (0, 1)


def test_an_unknown_direction_or_negative_copies_are_refused() -> None:
    counted = Traffic()
    with pytest.raises(ValueError, match="direction must be one of down, up, got 'sideways'"):
        counted.count("sideways", 0, "k", b"x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="copies must be at least 0, got -1"):
        counted.count("up", 0, "k", b"x", copies=-1)
    assert counted.messages() == 0
