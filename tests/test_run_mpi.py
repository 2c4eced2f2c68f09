"""The other library's arguments become the configuration that they mean, or one sentence."""

import importlib.util
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from fedsparse.config import Config, load

ROOT = Path(__file__).parent.parent
QUICK_START = "resnet18 cifar10 100 10 500 5 0.1 0.1 --delta_T 10 --T_end 300 --num_eval 128 --frequency_of_the_test 10"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_mpi", ROOT / "experiments" / "run_mpi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(script: ModuleType, arguments: str) -> Config:
    words = script.command(arguments.split())
    sets = [value for flag, value in pairwise(words) if flag == "--set"]
    return load(words[words.index("run") + 1], sets)


@pytest.mark.parametrize("method", ["fedtinyclean", "fedtiny", "fedmef", "fedrts", "feddst", "fedsgc"])
def test_the_quick_start(script: ModuleType, method: str) -> None:
    config = configured(script, f"{method} {QUICK_START}")
    assert (config.model.name, config.data.name) == ("resnet18", "cifar10")
    assert (config.partition.clients, config.train.clients_per_round) == (100, 10)
    assert (config.train.rounds, config.train.epochs, config.train.lr) == (500, 5, 0.1)
    assert (config.method.density, config.method.interval, config.method.last) == (0.1, 10, 300)
    assert (config.train.eval_every, config.train.batch_size, config.train.optimizer) == (10, 64, "adam")
    assert config.method.name == {"fedtinyclean": "fedtiny"}.get(method, method)


def test_density_comes_before_the_learning_rate_as_in_the_other_librarys_readme(script: ModuleType) -> None:
    config = configured(script, "fedrts resnet18 cifar10 100 10 500 5 0.2 0.001 --aggregated_gamma 0.3 --delta_T 7")
    assert (config.method.density, config.train.lr, config.method.fusion, config.method.interval) == (
        0.2,
        0.001,
        0.3,
        7,
    )


def test_every_flag_that_has_a_field_sets_it(script: ModuleType) -> None:
    flags = "--partition_alpha 5 --adjust_alpha 0.05 --wd 0.0005 --batch_size 16 --adjustment_epochs 1"
    flags += " --pruning_strategy uniform_magnitude --partition_method homo --client_optimizer sgd"
    config = configured(script, f"feddst resnet18_gn svhn 20 5 30 4 0.5 0.01 {flags}")
    assert (config.model.name, config.model.norm) == ("resnet18", "group")
    assert (config.partition.kind, config.partition.alpha) == ("iid", 5)
    assert (config.train.weight_decay, config.train.batch_size, config.train.optimizer) == (0.0005, 16, "sgd")
    method = config.method
    assert (method.rate, method.adjust_after, method.distribution, method.initial) == (
        0.05,
        0.25,
        "uniform",
        "magnitude",
    )


def test_prunefl_and_fixed_masks(script: ModuleType) -> None:
    assert configured(script, "prunefl resnet18 cifar10 100 10 500 5 0.3 0.1 --delta_T 50").method.max_density == 0.3
    assert configured(script, "fedinitprune resnet18 cifar10 10 10 5 1 0.3 0.1").method.density == 0.3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (f"fedavg {QUICK_START}", "--delta_T has no counterpart: fedavg never adjusts its mask"),
        (f"prunefl {QUICK_START}", "--T_end has no counterpart: PruneFL adjusts to the last round"),
        (f"fedrts {QUICK_START} --enable_ts 0", "--enable_ts 0 has no counterpart"),
        (f"fedtiny {QUICK_START} --aggregated_gamma 1", "--aggregated_gamma has no counterpart: it is FedRTS's alone"),
        (f"fedtiny {QUICK_START} --growth_data_mode entire", "--growth_data_mode entire has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    script: ModuleType, arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.command(arguments.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_has_no_effect_is_said(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.command(f"fedtiny {QUICK_START}".split())
    assert capsys.readouterr().err == "note: --num_eval has no effect: every test is on the whole test set\n"


def test_ranks_are_the_gpus_and_a_server(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert script.ranks() == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert script.ranks() == 1 + (os.cpu_count() or 1)
    monkeypatch.setenv("RANKS", "3")
    assert script.ranks() == 3


def test_the_script_runs_to_its_end(tmp_path: Path) -> None:
    """One rank: no MPI is needed. The run folder is made where it is called."""
    arguments = [
        "fedtiny",
        "cnn",
        "digits",
        "4",
        "2",
        "2",
        "1",
        "0.3",
        "0.01",
        "--delta_T",
        "1",
        "--T_end",
        "1",
        "--frequency_of_the_test",
        "1",
    ]
    environment = {
        **os.environ,
        "RANKS": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [ROOT / "experiments" / "run_mpi.sh", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/result.json"))
