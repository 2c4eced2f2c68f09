"""What a receiver expects of a section; checked against the header, before any payload is read.

A number that is None is not checked; `width` is: None means 1-D values. An `optional` section may be absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fedsparse.wire.dtypes import DTYPES
from fedsparse.wire.error import WireError
from fedsparse.wire.kinds import BY_CODE, Section
from fedsparse.wire.layout import Layout
from fedsparse.wire.sections import Bitmap, Indices, Masked, Pairs, Values
from fedsparse.wire.ternary import Ternary


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise WireError(f"its {what} is {found}, expected {wanted}")


@dataclass(frozen=True)
class Spec:
    """What all have: `size`, the length of the mask or the range of the indices."""

    section: ClassVar[type[Section]]

    size: int | None = None
    optional: bool = field(default=False, kw_only=True)

    def check(self, layout: Layout) -> None:
        """Refuse (WireError) a section that announces another type, dtype or number."""
        found = BY_CODE[layout.code]
        if not issubclass(found, self.section):
            _same("type", found.__name__, self.section.__name__)
        if self.size is not None:
            _same("size", self._announced(layout), self.size)

    def _announced(self, layout: Layout) -> int:
        return layout.size


@dataclass(frozen=True)
class _CountSpec(Spec):
    """`count`: the number of indices or true elements."""

    count: int | None = None

    def check(self, layout: Layout) -> None:
        super().check(layout)
        if self.count is not None:
            _same("count", layout.count, self.count)


def _legal_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {dtype!r}")


def _check_values(layout: Layout, dtype: str | None, width: int | None) -> None:
    if dtype is not None:
        _same("dtype", "float32" if layout.dtype is None else layout.dtype.name, dtype)
    _same("width", layout.width, width)


@dataclass(frozen=True)
class BitmapSpec(_CountSpec):
    """A mask of `size` elements, `count` of them true."""

    section = Bitmap


@dataclass(frozen=True)
class IndicesSpec(_CountSpec):
    """`count` indices in [0, size)."""

    section = Indices


@dataclass(frozen=True)
class TernarySpec(_CountSpec):
    """Signs of `size` elements, `count` of them not 0."""

    section = Ternary


@dataclass(frozen=True)
class ValuesSpec(Spec):
    """Values of shape [size], or [size, width], that decode to `dtype`; float32 ones may come quantised."""

    section = Values
    dtype: str | None = "float32"
    width: int | None = None

    def __post_init__(self) -> None:
        _legal_dtype(self.dtype)

    def check(self, layout: Layout) -> None:
        """Refuse (WireError) a section that announces another type, dtype or number."""
        super().check(layout)
        _check_values(layout, self.dtype, self.width)

    def _announced(self, layout: Layout) -> int:
        return layout.count


@dataclass(frozen=True)
class PairsSpec(_CountSpec):
    """`count` indices in [0, size) with values [count], or [count, width], that decode to `dtype`."""

    section = Pairs
    dtype: str | None = "float32"
    width: int | None = None

    def __post_init__(self) -> None:
        _legal_dtype(self.dtype)

    def check(self, layout: Layout) -> None:
        """Refuse (WireError) a section that announces another type, dtype or number."""
        super().check(layout)
        _check_values(layout, self.dtype, self.width)


@dataclass(frozen=True)
class MaskedSpec(_CountSpec):
    """A mask of `size` elements with `count` values that decode to `dtype`."""

    section = Masked
    dtype: str | None = "float32"

    def __post_init__(self) -> None:
        _legal_dtype(self.dtype)

    def check(self, layout: Layout) -> None:
        """Refuse (WireError) a section that announces another type, dtype or number."""
        super().check(layout)
        _check_values(layout, self.dtype, None)


def check_all(expect: Mapping[str, Spec], found: Mapping[str, Layout]) -> None:
    """Refuse (WireError) a missing, unexpected or wrong section, by name."""
    for name in found:
        if name not in expect:
            raise WireError(f"section {name!r} is not expected here (expected: {', '.join(expect) or 'none'})")
    for name, spec in expect.items():
        if name in found:
            try:
                spec.check(found[name])
            except WireError as error:
                raise WireError(f"section {name!r}: {error}") from None
        elif not spec.optional:
            raise WireError(f"section {name!r} ({spec.section.__name__}) is missing")
