"""What `benchmarks.layers` prints last: means over the layers against the goals, and where sparse starts to win."""

import math

from benchmarks.results import Row

DENSITIES = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
GOALS = {
    "sparse": dict(zip(DENSITIES, (1.1, 2.0, 3.5, 5.5, 9, 13))),
    "sparse V16": dict(zip(DENSITIES, (1.5, 3.5, 6.5, 11, 16, 20))),
}
BF16_GOALS = dict(zip(DENSITIES, (1.0, 1.8, 3, 4.5, 6, 8)))
"""Of strips in bfloat16 over dense bfloat16."""
STRIPS_BF16, DENSE_BF16 = "sparse V16 bf16", "dense bf16 channels_last"


def summary(rows: list[Row]) -> None:
    """Geometric means over the layers, goals, and where sparse starts to win."""
    print("\ngeometric mean over the layers, times as fast as the best dense fp32 (goal in brackets)")
    densities = sorted({row["density"] for row in rows if row["density"]}, reverse=True)
    print(f"{'':26}" + "".join(f"{density:>15.0%}" for density in densities))
    for who in dict.fromkeys(row["who"] for row in rows):
        means = {}
        for density in (None, *densities):
            found = [row["over_best_dense"] for row in rows if row["who"] == who and row["density"] == density]
            if found:
                means[density] = math.prod(found) ** (1 / len(found))
        if None in means:
            print(f"{who:26}{means[None]:15.2f}")
            continue
        goals = GOALS.get(who, {})
        cells = (
            f"{means[d]:.2f}" + (f" ({goals[d]:g})" if d in goals else "") if d in means else "" for d in densities
        )
        wins = [d for d in densities if means.get(d, 0) >= 1]
        start = f"  wins from {max(wins):.0%} down" if wins else "  never wins"
        print(f"{who:26}" + "".join(f"{cell:>15}" for cell in cells) + start)
    bf16_summary(rows, densities)


def bf16_summary(rows: list[Row], densities: list[float]) -> None:
    """Strips in bfloat16 against dense bfloat16, where both ran."""
    both = {
        name: {(r["layer"], r["density"]): r["over_best_dense"] for r in rows if r["who"] == name}
        for name in (STRIPS_BF16, DENSE_BF16)
    }
    if not all(both.values()):
        return
    print("\ngeometric mean over the layers, times as fast as dense bf16 channels_last (goal in brackets)")
    cells = []
    for density in densities:
        ratios = [
            ours / both[DENSE_BF16][layer, None] for (layer, d), ours in both[STRIPS_BF16].items() if d == density
        ]
        goal = f" ({BF16_GOALS[density]:g})" if density in BF16_GOALS else ""
        cells.append(f"{math.prod(ratios) ** (1 / len(ratios)):.2f}{goal}")
    print(f"{STRIPS_BF16:26}" + "".join(f"{cell:>15}" for cell in cells))
