"""Runs the cases of one section and appends a row for each: `python -m benchmarks.gpu.section NAME --rows FILE`.

It is started by gpu_check in a process of its own, so that an illegal memory access ends this section's process and
no other. The row "started" before each case tells which case a dead process was in.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

import torch

from . import plan, rows
from .bench import Bench
from .rows import Case, NotMeasurableError, Row

# After such an error every later call of the process fails.
EXIT_DEVICE_LOST = 3


def main() -> int:
    """Run from the command line; the exit code is 0 unless the device is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[section.name for section in plan.SECTIONS])
    parser.add_argument("--rows", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--first", type=int, default=0, help="number of the first case to run")
    parser.add_argument("--seconds", type=float, required=True, help="what may be spent")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    bench = Bench(args.device, args.smoke)
    cases = plan.section(args.name).cases(args.smoke)
    return run(bench, args.name, cases[args.first :], args.rows, args.seconds)


def run(bench: Bench, name: str, cases: list[Case], path: Path, seconds: float) -> int:
    """Run what fits in the time; each case leaves one row beside its "started"."""
    start = time.monotonic()
    for case in cases:
        left = seconds - (time.monotonic() - start)
        if not bench.smoke and case.seconds > left:
            note = f"{max(left, 0):.0f} s of the section's {seconds:.0f} s were left, it takes about {case.seconds:.0f}"
            rows.append(path, Row(name, case.label, rows.NOT_MEASURED, note))
            continue
        rows.append(path, Row(name, case.label, rows.STARTED))
        row, lost = outcome(bench, name, case)
        rows.append(path, row)
        if lost:
            return EXIT_DEVICE_LOST
        bench.clear()
    return 0


def outcome(bench: Bench, name: str, case: Case) -> tuple[Row, bool]:
    """The row of one case, and whether the device is lost to this process."""
    try:
        return Row.of(name, case, case.run(bench)), False
    except NotMeasurableError as reason:
        return Row(name, case.label, rows.NOT_MEASURED, str(reason)), False
    except Exception as error:
        traceback.print_exc()
        sentence = str(error).strip().splitlines() or [""]
        note = f"{type(error).__name__}: {sentence[0]}"
        return Row(name, case.label, rows.FAILED, note), isinstance(error, torch.AcceleratorError)


if __name__ == "__main__":
    sys.exit(main())
