"""A line of a message's table: what a section announces of itself, before any of its payload is read."""

from typing import NamedTuple

from fedsparse.wire import indexset
from fedsparse.wire.dtypes import Array, Dtype


class Layout(NamedTuple):
    """A line of the table, one section; `width` is None for 1-D values, else the number of columns."""

    code: int
    dtype: Dtype | None = None
    wire: Dtype | None = None
    coding: int = indexset.NONE
    size: int = 0
    count: int = 0  # type: ignore[assignment]  # hides tuple.count
    width: int | None = None
    nbytes: int = 0

    @property
    def value_bytes(self) -> int:
        """Bytes of the values, which follow the indices."""
        if self.wire is None:
            return 0
        return self.count * (1 if self.width is None else self.width) * self.wire.itemsize


Packed = tuple[Layout, list[Array]]
