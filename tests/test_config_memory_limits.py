"""`train.memory_limit`: sizes in bytes and with units, for all clients, by client, by share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsparse.cli import main
from fedsparse.cli.fitting import again
from fedsparse.config import ConfigError, from_tables, reload
from fedsparse.config.memory_limits import bytes_of, limits_of
from fedsparse.methods import FedAvg

MIB = 2**20


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (5000, [5000] * 4),
        ("200 MiB", [200 * MIB] * 4),
        (["1.5KiB", 7, "2 MB", "1 GB"], [1536, 7, 2_000_000, 10**9]),
        ({"1 MiB": 0.5, "3 MiB": 0.5}, [MIB, MIB, 3 * MIB, 3 * MIB]),
        ({"1 B": 0.1, "2 B": 0.9}, [2] * 4),
        ({"1": 0.3, "2": 0.3, "3": 0.4}, [1, 2, 3, 3]),
    ],
)
def test_limits_by_client(given: object, expected: list[int] | None) -> None:
    """Shares of 4 clients end at round(4 x): .1 -> 0; .3, .6 -> 1, 2."""
    assert limits_of(given, 4) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -3, "0 MiB", "2 mib", "MiB", "1e6", "-1 B", "1 PB", True, "9" * 400 + " B", 2**63])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(ConfigError, match="must be bytes above 0 and below 2.63, .*KiB"):
        bytes_of(size)  # type: ignore[arg-type]


def test_lists_and_shares_must_fit() -> None:
    with pytest.raises(ConfigError, match="has 2 entries but must have one for each of 4 clients"):
        limits_of([1, 2], 4)
    for shares in ({"1 MiB": 0.5}, {}, {"1": -0.5, "2": 1.5}):
        with pytest.raises(ConfigError, match="must add up to 1"):
            limits_of(shares, 4)  # type: ignore[arg-type]


def test_a_wrong_type_is_told() -> None:
    with pytest.raises(ConfigError, match=r"train\.memory_limit is .* but must be a whole number or text or a list"):
        from_tables({"train": {"memory_limit": 1.5}, "method": {"name": "fedavg"}})


CONFIG = """
[data]
train_limit = 80
[partition]
clients = 4
kind = "iid"
[model]
name = "cnn"
width = 0.25
[train]
rounds = 2
batch_size = 16
memory_limit = {small}
[method]
name = "fedavg"
density = 0.1
layers = "conv"
"""


def test_a_run_from_a_file_keeps_its_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the clients with little, the others with much; the result and the line of a round tell the plans."""
    path, out = tmp_path / "trial.toml", tmp_path / "out"
    path.write_text(CONFIG.replace("{small}", "1000"))
    assert main(["run", str(path), "--out", str(out)]) == 2
    sentence = capsys.readouterr().err
    assert "client 0 may take 1000 bytes" in sentence
    assert sentence.count("\n") == 1
    assert not out.exists()
    least = int(sentence.split("at least ")[1].split(",")[0])
    path.write_text(CONFIG.replace("{small}", f'{{"{least}" = 0.25, "1 GiB" = 0.75}}'))
    assert main(["run", str(path), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "dense/1 x3" in told.err
    assert "3 clients): dense, minibatches whole" in " ".join(told.out.replace("│", "").split())
    assert reload(out / "config.json").train.memory_limit == {str(least): 0.25, "1 GiB": 0.75}


def test_the_density_is_halved_until_every_limit_is_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit is the least at which a quarter of the density fits: half of it does not, and is not taken."""
    path, out = tmp_path / "trial.toml", tmp_path / "out"
    # So wide that weights, not activations, decide.
    wide = CONFIG.replace("width = 0.25", "width = 2.0").replace("batch_size = 16", "batch_size = 8")

    def least(density: float) -> int:
        path.write_text(wide.replace("{small}", "1000"))
        assert main(["run", str(path), "--set", f"method.density={density}", "--out", str(out)]) == 2
        return int(capsys.readouterr().err.split("at least ")[1].split(",")[0])

    limit = least(0.1)
    assert limit < least(0.2) < least(0.4)
    path.write_text(wide.replace("{small}", str(limit)))
    words = ["run", str(path), "--set", "method.density=0.4", "--out", str(out), "--set", "train.rounds=1"]
    assert main(words) == 2
    capsys.readouterr()
    assert main([*words, "--set", "train.fit_density=true"]) == 0
    assert "method.density 0.1 fits the memory limits (asked for: 0.4)" in capsys.readouterr().err
    assert reload(out / "config.json").method.density == 0.1
    again = tmp_path / "again"
    assert main(["compare", str(path), *words[2:4], "--set", "train.fit_density=true", "--out", str(again)]) == 0
    assert {reload(found).method.density for found in again.glob("*/config.json")} == {0.1}


def test_a_density_that_no_halving_makes_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "trial.toml", tmp_path / "out"
    path.write_text(CONFIG.replace("{small}", "1000"))
    assert main(["run", str(path), "--set", "train.fit_density=true", "--out", str(out)]) == 2
    assert "at a density of 0.00156 still: client 0 may take 1000 bytes" in capsys.readouterr().err
    assert not out.exists()


def test_a_density_fits_limits_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.toml"
    path.write_text(CONFIG.replace("memory_limit = {small}", "fit_density = true"))
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "there is no train.memory_limit for the density to fit" in capsys.readouterr().err


def test_other_ranks_begin_with_the_density_that_was_found() -> None:
    tables = {
        "train": {"memory_limit": "1 MiB", "fit_density": True},
        "method": {"name": "prunefl", "max_density": 0.25},
    }
    assert again(from_tables(tables)) == ["method.max_density=0.25", "train.fit_density=false"]
    assert again(from_tables({"method": {"name": "fedavg"}})) == []


def test_a_method_that_cannot_start_is_refused_while_a_density_is_sought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("there is nothing to prune")

    monkeypatch.setattr(FedAvg, "start", refuse)
    path, out = tmp_path / "trial.toml", tmp_path / "out"
    path.write_text(CONFIG.replace("{small}", '"1 GiB"'))
    assert main(["run", str(path), "--set", "train.fit_density=true", "--out", str(out)]) == 2
    assert capsys.readouterr().err == "error: method fedavg cannot start: there is nothing to prune\n"
    assert not out.exists()
