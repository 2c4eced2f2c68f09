"""Runs the build, the tests and the sections in processes of their own, each within its time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import rows
from .plan import Section
from .rows import Row

ROOT = Path(__file__).resolve().parents[2]
# A section stops by itself between two cases; one that hangs inside a case is killed this much later.
GRACE_SECONDS = 15.0
MAX_RESTARTS = 4
TESTS_AT_ONCE = 4


@dataclass
class Runner:
    """How to start processes.

    Attributes:
        home: the folder that holds the fedsparse package, put first on their path.
        log: file that gets their output.
        scratch: folder for the rows of the sections.
        device, smoke: as in `Bench`.
        suite: folder of the tests that need a GPU.
    """

    home: Path
    log: Path
    scratch: Path
    device: str
    smoke: bool = False
    suite: Path = ROOT / "tests" / "gpu"

    def run(self, command: list[str], seconds: float) -> tuple[int | None, str]:
        """(exit code, output): code None where it was killed at its time limit."""
        env = os.environ | {"PYTHONPATH": f"{self.home}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as expired:
            held = expired.stdout or b""
            code, output = None, held.decode(errors="replace") if isinstance(held, bytes) else held
        with self.log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{output}\n[exit code {code}]\n\n")
        return code, output

    def build(self, seconds: float) -> Row:
        """Compile everything into build/lib, which becomes `home`."""
        command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "build/lib"]
        code, output = self.run(command, seconds)
        if code != 0:
            return Row("checks", "build", rows.FAILED, _ending(code, output, seconds))
        self.home = ROOT / "build" / "lib"
        return Row("checks", "build", rows.MEASURED, "built into build/lib")

    def tests(self, seconds: float) -> Row:
        """The tests that need a GPU, some files at a time: most of their time is the compiler's, on one core."""
        end = time.monotonic() + seconds
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rfE"]

        def run(file: Path) -> tuple[int | None, str]:
            return self.run([*command, str(file)], max(1.0, end - time.monotonic()))

        files = sorted(self.suite.glob("test_*.py"))
        with ThreadPoolExecutor(TESTS_AT_ONCE) as pool:
            ended = list(zip(files, pool.map(run, files), strict=True))
        counts: Counter[str] = Counter()
        for _, (_, output) in ended:
            counts.update({what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|error|skipped)", output)})
        found = [f"{count} {what}" for what, count in counts.items()]
        if counts["passed"] and all(code == 0 for _, (code, _) in ended):
            return Row("checks", "tests marked gpu", rows.MEASURED, ", ".join(found))
        broken = [f"{f.name}: {_ending(code, out, seconds)}" for f, (code, out) in ended if code not in (0, 1)]
        return Row("checks", "tests marked gpu", rows.FAILED, ", ".join([*found, *broken]) or "no test ran")

    def section(self, section: Section, seconds: float) -> list[Row]:
        """A row for each case; a case that kills its process fails alone, and the next process goes on after it."""
        labels = [case.label for case in section.cases(self.smoke)]
        outcomes: dict[str, Row] = {}
        end = time.monotonic() + seconds
        note = "the section's process ended before it"
        for attempt in range(MAX_RESTARTS + 1):
            first = next((i for i, label in enumerate(labels) if label not in outcomes), None)
            left = end - time.monotonic()
            if first is None or left <= 0:
                note = f"the section's {seconds:.0f} s were spent"
                break
            path = self.scratch / f"{section.name}-{attempt}.jsonl"
            code, output = self.run(self._command(section, path, first, left), left + GRACE_SECONDS)
            found = list(rows.read(path))
            outcomes |= {row.case: row for row in found if row.status != rows.STARTED}
            if found and found[-1].status == rows.STARTED:
                died = _ending(code, output, left + GRACE_SECONDS)
                outcomes[found[-1].case] = Row(section.name, found[-1].case, rows.FAILED, died)
            elif code != 0 and not found:
                died = _ending(code, output, left + GRACE_SECONDS)
                outcomes[labels[first]] = Row(section.name, labels[first], rows.FAILED, died)
                note = "the section does not start"
                break
        return [outcomes.get(label) or Row(section.name, label, rows.NOT_MEASURED, note) for label in labels]

    def _command(self, section: Section, path: Path, first: int, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu.section", section.name, "--rows", str(path)]
        command += ["--device", self.device, "--first", str(first), "--seconds", f"{seconds:.1f}"]
        return [*command, "--smoke"] if self.smoke else command


def _ending(code: int | None, output: str, seconds: float) -> str:
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
    how = f"killed after {seconds:.0f} s" if code is None else f"exit code {code}"
    return f"{how}: {last[:160]}"
