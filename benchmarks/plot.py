"""Draw the CPU benchmarks' CSV files: how many times as fast as the best dense torch, by density.

python -m benchmarks.plot benchmarks/results/cpu
"""

import argparse
import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read(path: Path) -> tuple[str, list[dict[str, str]]]:
    """(the header line, the rows) of a file that `results.write_csv` wrote."""
    with path.open() as file:
        head = file.readline().removeprefix("# ").strip()
        return head, list(csv.DictReader(file))


def curves(rows: list[dict[str, str]]) -> dict[str, dict[float, float]]:
    """By contender: the geometric mean over the layers of its ratio, by density."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["density"]:
            found.setdefault(row["who"], {}).setdefault(float(row["density"]), []).append(float(row["over_best_dense"]))
    return {
        who: {density: math.prod(ratios) ** (1 / len(ratios)) for density, ratios in sorted(by_density.items())}
        for who, by_density in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    parts = {"layers": "3x3 convolutions of ResNet-18, forward + gradients", "resnet18": "whole ResNet-18 step"}
    files = {title: folder / f"{stem}.csv" for stem, title in parts.items() if (folder / f"{stem}.csv").exists()}
    figure, axes = plt.subplots(1, len(files), figsize=(6 * len(files), 4.5), squeeze=False)
    for axis, (title, path) in zip(axes[0], files.items()):
        head, rows = read(path)
        for who, points in curves(rows).items():
            axis.plot([100 * d for d in points], list(points.values()), marker="o", label=who)
        axis.axhline(1, color="black", linewidth=1, linestyle="--", label="best dense fp32")
        axis.set(xscale="log", yscale="log", xlabel="density, %", ylabel="times as fast as the best dense fp32")
        axis.set_title(f"{title}\n{head.split(': ', 1)[1]}", fontsize=8)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "speed.png", dpi=110)
    print(f"drawn: {folder / 'speed.png'}")


if __name__ == "__main__":
    main()
