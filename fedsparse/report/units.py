"""Numbers with their units, as tables and axes show them; what was not measured shows as a dash."""

from __future__ import annotations

DASH = "\u2013"


def scaled(value: float, steps: tuple[str, ...]) -> str:
    """Return three significant digits with the decimal prefix (steps of 1000) that keeps them below 1000."""
    step = 0
    while abs(value) >= 999.5 and step < len(steps) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {steps[step]}".rstrip()


def bytes_text(count: float | None) -> str:
    """Return bytes in decimal units: "1.91 MB"."""
    return DASH if count is None else scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float | None) -> str:
    """Return a count in thousands, millions, ...: "556 M"."""
    return DASH if count is None else scaled(count, ("", "k", "M", "G", "T"))


def percent_text(share: float | None, digits: int = 1) -> str:
    """Return a share of one in percent: "10.0 %"."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def seconds_text(seconds: float | None) -> str:
    """Return seconds with three significant digits, from minutes on as minutes and seconds."""
    if seconds is None:
        return DASH
    if seconds >= 100:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def ratio_text(ratio: float | None) -> str:
    """Return a ratio to the first run: "0.12 x"."""
    return DASH if ratio is None else f"{ratio:.3g} x"
