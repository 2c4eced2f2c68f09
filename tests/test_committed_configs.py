"""Every configuration under experiments/ is read, and compared ones can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsparse.config import load_several

ROOT = Path(__file__).parent.parent / "experiments"
FILES = sorted(ROOT.rglob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_committed_configuration_is_read(path: Path) -> None:
    configs = load_several(path)
    names = [config.name for config in configs]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_methods_in_one_file_train_alike(path: Path) -> None:
    """The file gives what methods' papers have otherwise."""
    first, *others = (config.train for config in load_several(path))
    assert all(train == first for train in others)


@pytest.mark.parametrize("density", ["d20", "d10", "d05"])
def test_the_small_and_the_paper_comparison_have_the_same_methods_and_densities(density: str) -> None:
    small, paper = (load_several(ROOT / "cifar10-methods" / folder / f"{density}.toml") for folder in (".", "paper"))
    expected = int(density[1:]) / 100
    for one, other in zip(small, paper, strict=True):
        assert one.name == other.name
        for config in (one, other):
            if config.name not in ("dense", "prunefl"):
                assert config.method.density == expected
    assert {config.method.name for config in paper} == {
        "fedavg", "ssfl", "prunefl", "feddst", "fedtiny", "fedmef", "fedsgc", "fedrts",
    }  # fmt: skip
    assert (paper[0].partition.clients, paper[0].train.clients_per_round, paper[0].train.rounds) == (100, 10, 500)
