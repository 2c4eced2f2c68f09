"""Ten thousand clients take no more memory than a hundred with the same data between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def measured(clients: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(clients)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clients_nor_with_the_rounds() -> None:
    """10,000 index arrays of 16 bytes and their objects are 2 MB; a copy of the data would be 15 MB. A hundred clients
    train on larger batches, so that they take more rather than less."""
    few, many = measured(100), measured(10_000)
    assert many["last"] - many["loaded"] < few["last"] - few["loaded"] + 10
    assert many["last"] - many["first"] < 10
