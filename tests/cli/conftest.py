"""The fake loop in place of the real one, and configurations to give to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_loop import FakeLoop

from fedsparse import federated


@pytest.fixture
def fake_loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(federated, "run", loop)
    return loop


DENSE = """
seed = 3
[partition]
clients = 4
[train]
rounds = 4
[method]
name = "fedavg"
"""
SPARSE = DENSE + "density = 0.1\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with two configurations, in a folder `pair`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "dense.toml").write_text(DENSE)
    (tmp_path / "pair" / "sparse.toml").write_text(SPARSE)
    return tmp_path
