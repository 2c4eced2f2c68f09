"""How many weights each layer keeps: uniform, ER and ERK layer densities with an exact total.

Sources: Mocanu et al., Nature Communications 2018 (ER); Evci et al., ICML 2020 (ERK).
"""

from collections.abc import Mapping
from typing import Literal, get_args

Rule = Literal["uniform", "er", "erk"]
Shape = tuple[int, ...]


def layer_counts(
    shapes: Mapping[str, Shape], density: float, rule: Rule = "erk", granularity: int = 1
) -> dict[str, int]:
    """Return the number of active weights of each layer; they add up to round(density * total weights).

    shapes: (N, C) or (N, C, kh, kw) by layer name. ER: d_l = eps (N + C) / (N C); ERK: d_l = eps (N + C + kh + kw) /
    (N C kh kw), the numerator taken for the whole kernel. A layer that would exceed density 1 becomes dense, and eps is
    solved again for the rest. Rounding is by largest remainder, ties to the earlier layer; no layer falls below one
    group. With `granularity` V counts are multiples of V, and the total is exact in groups: V * round(d * total / V).

    Raises ValueError for a density outside (0, 1], an unknown rule, or V that does not divide a layer's N.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density} but must be in (0, 1]")
    if rule not in get_args(Rule):
        raise ValueError(f"layer densities {rule!r} are not one of {', '.join(get_args(Rule))}")
    groups = {name: _groups(name, shape, granularity) for name, shape in shapes.items()}
    total = max(round(density * sum(groups.values())), len(groups))
    raw = {name: _raw(shape, rule) for name, shape in shapes.items()}
    exact = _solve(groups, raw, total)
    return {name: granularity * count for name, count in _round(exact, groups, total).items()}


def apportion(
    shares: Mapping[str, float], shapes: Mapping[str, Shape], density: float, granularity: int = 1
) -> dict[str, int]:
    """Counts in proportion to `shares[name]` (a wished density, any scale), at most a layer's size, exact in total."""
    groups = {name: _groups(name, shape, granularity) for name, shape in shapes.items()}
    total = max(round(density * sum(groups.values())), len(groups))
    return {name: granularity * count for name, count in _round(_solve(groups, shares, total), groups, total).items()}


def _groups(name: str, shape: Shape, granularity: int) -> int:
    if shape[0] % granularity:
        raise ValueError(f"granularity {granularity} does not divide the {shape[0]} output channels of {name}")
    size = 1
    for extent in shape:
        size *= extent
    return size // granularity


def _raw(shape: Shape, rule: Rule) -> float:
    if rule == "uniform":
        return 1.0
    rows, columns, *kernel = shape
    size = rows * columns
    if rule == "er":
        return (rows + columns) / size
    for extent in kernel:
        size *= extent
    return (rows + columns + sum(kernel)) / size


def _solve(groups: Mapping[str, int], raw: Mapping[str, float], total: int) -> dict[str, float]:
    """Solve sum_l min(1, eps raw_l) n_l = total for eps; return eps raw_l n_l, or n_l where the layer is dense."""
    dense: set[str] = set()
    while True:
        rest = [name for name in groups if name not in dense]
        budget = total - sum(groups[name] for name in dense)
        weight = sum(raw[name] * groups[name] for name in rest)
        eps = budget / weight if weight else 0.0
        over = {name for name in rest if eps * raw[name] > 1}
        if not over:
            return {name: float(n) if name in dense else eps * raw[name] * n for name, n in groups.items()}
        dense |= over


def _round(exact: Mapping[str, float], groups: Mapping[str, int], total: int) -> dict[str, int]:
    counts = {name: min(max(int(value), 1), groups[name]) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        open_layers = [n for n in by_remainder if 1 <= counts[n] + step <= groups[n]]
        for name in (open_layers if step > 0 else open_layers[::-1])[: abs(missing)]:
            counts[name] += step
    return counts
