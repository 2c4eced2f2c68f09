"""Speed and size of the wire codec on one core: `python benchmarks/wire.py [--elements N]`.

A message is decoded and compared with what was encoded before its time is reported. GB/s are bytes of the decoded
arrays (a mask: one byte an element) over the least CPU time of `repeats` runs of all of `encode` or `decode`: checksum,
checks and fresh memory included. `copy` is numpy copying the same arrays once: what the memory allows.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from fedsparse import _wire
from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Quantised, Section, Ternary, Values, decode, encode


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def arrays(section: Section) -> list[np.ndarray]:
    """The distinct arrays of a section (a `Values` has one under two names)."""
    return list({id(array): array for array in vars(section).values() if isinstance(array, np.ndarray)}.values())


def check(sent: Section, received: Section) -> None:
    wire = getattr(sent, "wire", None)
    relative = 1e-2 if wire in ("fp16", "bf16") else 0
    for left, right in zip(arrays(sent), arrays(received), strict=True):
        absolute = np.abs(left).max() / 127 if wire == "int8" else 1e-4 * relative
        np.testing.assert_allclose(left, right, rtol=relative, atol=absolute)


def cases(n: int) -> dict[str, Section]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(n, dtype=np.float32)
    masks = {density: rng.random(n) < density for density in (0.5, 0.05, 0.001)}
    indices = np.flatnonzero(masks[0.05])
    return {
        "Values float32": Values(values),
        "Values float32 as fp16": Values(values, wire="fp16"),
        "Values float32 as bf16": Values(values, wire="bf16"),
        "Quantised (int8)": Quantised(values, [n // 2, n - n // 2]),
        "Values float64": Values(values.astype(np.float64)),
        "Bitmap, density 0.5": Bitmap(masks[0.5]),
        "Bitmap, density 0.05": Bitmap(masks[0.05]),
        "Bitmap, density 0.001": Bitmap(masks[0.001]),
        "Ternary, density 0.05": Ternary((masks[0.05] * np.sign(values)).astype(np.int8)),
        "Masked, density 0.05": Masked(masks[0.05], values[masks[0.05]]),
        "Indices, density 0.05": Indices(indices, n),
        "Pairs, density 0.05": Pairs(indices, values[indices], n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checksum = "hardware" if _wire.crc32c_has_hardware() else "portable"
    print(f"{options.elements} elements, one thread, best of {options.repeats}, {checksum} CRC-32C")
    print(f"{'section':24}{'MB':>8}{'wire MB':>9}{'copy':>8}{'encode':>8}{'decode':>8}  GB/s")
    for name, section in cases(options.elements).items():
        data = encode("update", 0, 0, {"s": section})
        check(section, decode(data).sections["s"])
        size = sum(array.nbytes for array in arrays(section))
        runs: list[Callable[[], object]] = [
            lambda section=section: [array.copy() for array in arrays(section)],
            lambda section=section: encode("update", 0, 0, {"s": section}),
            lambda data=data: decode(data),
        ]
        speeds = [size / best_seconds(run, options.repeats) / 1e9 for run in runs]
        print(f"{name:24}{size / 1e6:8.1f}{len(data) / 1e6:9.2f}" + "".join(f"{speed:8.2f}" for speed in speeds))
    small = {"s": Values(np.zeros(100, dtype=np.float32))}
    data = encode("update", 0, 0, small)
    times = [best_seconds(run, 1000) * 1e6 for run in (lambda: encode("update", 0, 0, small), lambda: decode(data))]
    print(f"a message of {len(data)} bytes: encode {times[0]:.0f} us, decode {times[1]:.0f} us")


if __name__ == "__main__":
    main()
