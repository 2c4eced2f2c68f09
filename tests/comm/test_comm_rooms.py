"""Where received messages lie, and that no message is a pickle."""

import ast
import re
from pathlib import Path

import numpy as np

import fedsparse
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


def test_no_call_of_mpi_pickles() -> None:
    """mpi4py's lower-case calls send pickled objects, its capitalised ones raw buffers; one file calls MPI."""
    files = Path(fedsparse.__file__).parent.rglob("*.py")
    with_mpi = [path for path in files if re.search(r"(import|from) mpi4py", path.read_text())]
    assert [path.name for path in with_mpi] == ["mpi.py"]
    called = [
        node.func.attr
        for node in ast.walk(ast.parse(with_mpi[0].read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) in ("self._world", "MPI.COMM_WORLD")
    ]
    assert {"Isend", "Iprobe", "Recv"} <= set(called)
    assert [name for name in called if not name[0].isupper()] == []
