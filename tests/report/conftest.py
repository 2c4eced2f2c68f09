"""Three invented runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from invented_runs import write_profile, write_run


@pytest.fixture
def three_runs(tmp_path: Path) -> list[Path]:
    """Dense FedAvg, FedAvg on a fixed mask, FedTiny; the last with a profile of a step."""
    runs = [
        write_run(tmp_path / "dense", "dense", "fedavg", 1.0, ceiling=0.97),
        write_run(tmp_path / "fixed", "fixed-mask", "fedavg", 0.1, ceiling=0.9),
        write_run(tmp_path / "tiny", "fedtiny", "fedtiny", 0.1, ceiling=0.94),
    ]
    write_profile(runs[2])
    return runs
