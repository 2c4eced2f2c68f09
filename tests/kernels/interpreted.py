"""Runs a script of this folder under Triton's interpreter, in a process of its own, and reads what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Without collections of garbage, of which the interpreter makes much, the short scripts take a fifth less.
PROGRAM = "import gc, runpy, sys; gc.disable(); runpy.run_path(sys.argv[1], run_name='__main__')"


def run(script: str, timeout: int = 200) -> Any:
    """The JSON that the script prints; skips where the interpreter does not work."""
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("triton's interpreter fails on loops with run-time bounds under numpy >= 2.4")
    here = Path(__file__).parent
    env = os.environ | {"TRITON_INTERPRET": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-c", PROGRAM, str(here / script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
