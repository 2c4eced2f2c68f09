"""Where received messages lie."""

import numpy as np

from fedsparse.comm.mpi import LARGE, ROOMS, Link


def place(data: memoryview) -> int:
    return np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]


def receiving() -> Link:
    link = Link.__new__(Link)
    link._rooms = []
    return link


def test_a_large_message_lies_where_one_lay_that_nobody_reads_any_more() -> None:
    link = receiving()
    first, second = link._room(2 * LARGE).data, link._room(2 * LARGE).data
    assert place(first) != place(second)
    before = place(first)
    del first
    third = link._room(LARGE).data
    assert (place(third), len(third)) == (before, LARGE)


def test_what_somebody_reads_is_never_written_over() -> None:
    """A slice of a message, an array over it: both keep it; and no more rooms than said are kept."""
    link = receiving()
    held = [link._room(LARGE).data[8:], np.frombuffer(link._room(LARGE).data, dtype=np.float32)]
    held += [link._room(LARGE).data for _ in range(3)]
    places = [place(memoryview(data).cast("B")) for data in held]
    assert len(set(places)) == 5
    assert len(link._rooms) == ROOMS


def test_a_small_message_has_memory_of_its_own() -> None:
    link = receiving()
    assert len(link._room(LARGE - 1)) == LARGE - 1
    assert link._rooms == []
