"""Checks and measures the GPU back ends in one command: `python -m benchmarks.gpu_check`.

Builds the compiled parts if they are missing, runs the tests marked `gpu`, measures what the sparse kernels have to
beat and what they reach, prints one table last and writes results.json, results.csv, table.txt and log.txt. The
whole takes at most the minutes given: sections run in order of importance, and what did not fit is "not measured".
Exit code 1 if a test or a case failed. Without a GPU it says so, prints the same table, and exits 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import facts as machine
from benchmarks.gpu import plan, rows, table
from benchmarks.gpu.process import ROOT, Runner
from benchmarks.gpu.rows import Row

HEADINGS = {"checks": "Build and tests"} | {section.name: section.heading for section in plan.SECTIONS}
# Kept for writing the results.
RESERVE_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    args = _parse(arguments)
    device = args.device or ("cuda" if torch.cuda.is_available() else "none")
    if device == "none":
        why = "no GPU is visible to torch"
        print(f"gpu-check: nothing was measured, because {why}.")
        print(table.text("gpu-check: no GPU", HEADINGS, [*_skipped_checks(why), *_all_skipped(why)]))
        return 0
    facts = machine.facts(ROOT, device)
    out = args.out or ROOT / "benchmarks" / "results" / f"gpu-{_name(facts)}-{str(facts['date'])[:10]}"
    out.mkdir(parents=True, exist_ok=True)
    facts |= machine.clocks("before")
    measured = _measure(args, device, out)
    facts |= machine.clocks("after")
    rows.add_speedups(measured)
    title = _title(facts, args.smoke)
    text = table.text(title, HEADINGS, measured)
    table.write(out, facts, measured, text)
    print(text)
    failed = sum(row.status == rows.FAILED for row in measured)
    print(f"gpu-check: {failed} of {len(measured)} lines failed; full results in {out}")
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results/gpu-<name>-<date>)")
    parser.add_argument("--minutes", type=float, default=7.5, help="what the whole may take (7.5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu only with --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: tests the measuring, measures nothing")
    parser.add_argument("--only", nargs="+", choices=list(HEADINGS), help="these sections only")
    args = parser.parse_args(arguments)
    if args.device == "cpu" and not args.smoke:
        parser.error("--device cpu needs --smoke: CPU times are measured by the other benchmarks")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible to torch")
    if args.minutes <= 0:
        parser.error(f"--minutes must be above 0, not {args.minutes}")
    return args


def _measure(args: argparse.Namespace, device: str, out: Path) -> list[Row]:
    end = time.monotonic() + 60 * args.minutes - RESERVE_SECONDS
    log = out / "log.txt"
    log.write_text("")
    wanted = args.only or list(HEADINGS)
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(_home(), log, Path(scratch), device, args.smoke)
        found = _checks(runner, end) if "checks" in wanted else []
        for section in plan.SECTIONS:
            if section.name not in wanted:
                continue
            left = end - time.monotonic()
            _say(f"{section.heading} (at most {_allowed(args, section, left):.0f} s)")
            found += _section(runner, section, _allowed(args, section, left))
    return found


def _allowed(args: argparse.Namespace, section: plan.Section, left: float) -> float:
    """Seconds for a section: its share, or where one alone was asked for, all that is left."""
    return max(0.0, left if args.only == [section.name] else min(section.seconds, left))


def _checks(runner: Runner, end: float) -> list[Row]:
    """Build where the compiled CUDA ops are missing, then the tests."""
    if runner.smoke:
        return _skipped_checks("smoke test")
    built = Row("checks", "build", rows.MEASURED, f"found in {runner.home}")
    if not (runner.home / "fedsparse" / "_ops_cuda.so").exists():
        _say(f"building (at most {plan.BUILD_SECONDS:.0f} s)")
        built = runner.build(min(plan.BUILD_SECONDS, end - time.monotonic()))
    _say(f"tests marked gpu (at most {plan.TEST_SECONDS:.0f} s)")
    return [built, runner.tests(max(1.0, min(plan.TEST_SECONDS, end - time.monotonic())))]


def _section(runner: Runner, section: plan.Section, seconds: float) -> list[Row]:
    try:
        if seconds <= 0:
            return _skipped(section, "the whole time was spent")
        return runner.section(section, seconds)
    except Exception as error:
        return [Row(section.name, section.name, rows.FAILED, f"{type(error).__name__}: {error}")]


def _skipped(section: plan.Section, why: str) -> list[Row]:
    return [Row(section.name, case.label, rows.NOT_MEASURED, why) for case in section.cases()]


def _all_skipped(why: str) -> list[Row]:
    return [row for section in plan.SECTIONS for row in _skipped(section, why)]


def _skipped_checks(why: str) -> list[Row]:
    return [Row("checks", name, rows.NOT_MEASURED, why) for name in ("build", "tests marked gpu")]


def _home() -> Path:
    """The folder of the fedsparse package that is on this process's path, the source tree where there is none."""
    spec = importlib.util.find_spec("fedsparse")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))).resolve().parent if places else ROOT


def _name(facts: machine.Facts) -> str:
    return machine.slug(str(facts["device"]))


def _title(facts: machine.Facts, smoke: bool) -> str:
    what = "smoke test, not a measurement" if smoke else "one run, medians"
    driver = facts.get("driver_version_before") or "none"
    commit = str(facts["commit"] or "unknown")[:12]
    return (
        f"gpu-check on {facts['device']}: {what}; torch {facts['torch']}, driver {driver}, "
        f"commit {commit}, {facts['date']}"
    )


def _say(sentence: str) -> None:
    print(f"gpu-check: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
