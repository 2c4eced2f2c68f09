"""The arguments of the FedPruning library's scripts as a `fedsparse run`: its users switch by changing a path.

Positional arguments as in its README: method (there part of the script's name), model, dataset, clients, clients a
round, rounds, local epochs, target density, learning rate. Flags that have no counterpart are accepted where they
cannot change the run, and refused, with the reason, where they would. The README of this project has the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

METHODS = {
    **{name: name for name in ("fedavg", "prunefl", "feddst", "fedtiny", "fedmef", "fedsgc", "fedrts", "ssfl")},
    "fedtinyclean": "fedtiny",
    "fedinitprune": "fedavg",
}
MODELS = {"gpt2": "gpt2-32m", "shufflenet": "shufflenetv2", "resnet18_gn": "resnet18"}
SCHEDULED = ("prunefl", "feddst", "fedtiny", "fedmef", "fedsgc", "fedrts")
STRATEGIES = {"uniform_magnitude": "uniform", "ER_magnitude": "er", "ERK_magnitude": "erk"}
PARTITIONS = {"hetero": "dirichlet", "homo": "iid"}
WITHOUT_EFFECT = {
    "num_eval": "every test is on the whole test set",
    "adaptive_beta": "there is no adaptive aggregation",
    "initial_distribution_ratio": "posteriors start at Beta(1, 1), as in the paper",
    "gpu_mapping_file": "a rank's GPU is its local rank's",
    "gpu_mapping_key": "a rank's GPU is its local rank's",
    "gpu_server_num": "a rank's GPU is its local rank's",
    "gpu_num_per_server": "a rank's GPU is its local rank's",
    "is_mobile": "there is no server for phones",
    "ci": "tests have a suite of their own",
}
ONLY = {
    "backend": ("MPI", "MPI is the distributed engine"),
    "enable_adaptive_aggregation": ("0", "the server averages"),
    "enable_ts": ("1", "without Thompson sampling it is not FedRTS"),
    "ts_beta_update": ("1", "every posterior learns from both outcomes, as in the paper"),
    "growth_data_mode": ("batch", "method.growth_batches says how many minibatches"),
}


def parser() -> argparse.ArgumentParser:
    """The arguments of FedPruning's scripts, METHOD first."""
    made = argparse.ArgumentParser(prog="run_mpi.sh", description=__doc__.splitlines()[0])
    made.add_argument("method", choices=sorted(METHODS))
    made.add_argument("model")
    made.add_argument("dataset")
    for name in ("clients", "per_round", "rounds", "epochs"):
        made.add_argument(name, type=int)
    made.add_argument("density", type=float, help="target density, dense weights' share that stays")
    made.add_argument("lr", type=float, help="initial learning rate")
    for name in ("delta_T", "T_end", "frequency_of_the_test", "batch_size", "adjustment_epochs"):
        made.add_argument(f"--{name}", type=int)
    for name in ("partition_alpha", "adjust_alpha", "wd", "aggregated_gamma"):
        made.add_argument(f"--{name}", type=float)
    made.add_argument("--pruning_strategy", choices=list(STRATEGIES))
    made.add_argument("--partition_method", choices=list(PARTITIONS))
    made.add_argument("--client_optimizer", choices=["sgd", "adam"])
    made.add_argument("--data_dir")
    for name in (*WITHOUT_EFFECT, *ONLY):
        made.add_argument(f"--{name}")
    return made


def settings(given: argparse.Namespace) -> dict[str, object]:
    """The fields of the configuration that the arguments set."""
    method, model = METHODS[given.method], MODELS.get(given.model, given.model)
    chosen: dict[str, object] = {
        "name": f"{given.method}-{given.model}-{given.dataset.partition(':')[0]}",
        "model.name": model,
        "model.norm": "group" if given.model.endswith("_gn") else None,
        "data.name": given.dataset,
        "partition.clients": given.clients,
        "partition.alpha": given.partition_alpha,
        "partition.kind": PARTITIONS.get(given.partition_method),
        "train.clients_per_round": given.per_round,
        "train.rounds": given.rounds,
        "train.epochs": given.epochs,
        "train.lr": given.lr,
        "train.batch_size": given.batch_size,
        "train.optimizer": given.client_optimizer,
        "train.weight_decay": given.wd,
        "train.eval_every": given.frequency_of_the_test,
        "method.name": method,
        ("method.max_density" if method == "prunefl" else "method.density"): given.density,
    }
    chosen |= {field: value for field, value in of_method(given, method).items() if value is not None}
    return {field: value for field, value in chosen.items() if value is not None}


def of_method(given: argparse.Namespace, method: str) -> dict[str, object]:
    """The fields of the method's own table; refuses flags that it has no place for."""
    strategy = STRATEGIES.get(given.pruning_strategy)
    if method in ("prunefl", "ssfl"):
        refuse_if(given, "pruning_strategy", f"{method} chooses the layers' densities itself")
    if method not in SCHEDULED:
        for flag in ("delta_T", "T_end", "adjust_alpha", "adjustment_epochs"):
            refuse_if(given, flag, f"{given.method} never adjusts its mask")
    if method == "prunefl":
        refuse_if(given, "T_end", "PruneFL adjusts to the last round")
        refuse_if(given, "adjust_alpha", "PruneFL's number of changes is an output")
    if method not in ("feddst", "fedsgc"):
        refuse_if(given, "adjustment_epochs", f"clients of {given.method} do not adjust in mid round")
    if method != "fedrts":
        refuse_if(given, "aggregated_gamma", "it is FedRTS's alone")
    after = None if given.adjustment_epochs is None else given.adjustment_epochs / given.epochs
    return {
        "method.distribution": strategy,
        "method.initial": "magnitude" if strategy and method not in ("fedtiny", "prunefl", "ssfl") else None,
        "method.interval": given.delta_T,
        "method.last": given.T_end,
        "method.rate": given.adjust_alpha,
        "method.adjust_after": after,
        "method.fusion": given.aggregated_gamma,
    }


def refuse_if(given: argparse.Namespace, flag: str, reason: str) -> None:
    """End with exit code 2 where a flag is given that would change the run there and has no place here."""
    if getattr(given, flag) is not None:
        refuse(f"--{flag} has no counterpart: {reason}")


def refuse(sentence: str) -> NoReturn:
    """One sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def ranks() -> int:
    """RANKS, else one server and a rank for each visible GPU, else for each core."""
    if "RANKS" in os.environ:
        if not os.environ["RANKS"].isdigit() or int(os.environ["RANKS"]) < 1:
            refuse(f"RANKS is {os.environ['RANKS']!r} but must be a whole number of at least 1")
        return int(os.environ["RANKS"])
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    return 1 + (len(visible) or os.cpu_count() or 1)


def command(arguments: list[str]) -> list[str]:
    """The `fedsparse run` that the arguments stand for; notes on standard error what has no effect."""
    given = parser().parse_args(arguments)
    for flag, (only, reason) in ONLY.items():
        if getattr(given, flag) not in (None, only):
            refuse(f"--{flag} {getattr(given, flag)} has no counterpart: {reason}")
    for flag, reason in WITHOUT_EFFECT.items():
        if getattr(given, flag) is not None:
            print(f"note: --{flag} has no effect: {reason}", file=sys.stderr)
    sets = [word for field, value in settings(given).items() for word in ("--set", f"{field}={value}")]
    folder = ["--data-dir", given.data_dir] if given.data_dir else []
    config = Path(__file__).with_suffix(".toml")
    return [sys.executable, "-m", "fedsparse", "run", str(config), *sets, *folder, "--ranks", str(ranks())]


if __name__ == "__main__":
    words = command(sys.argv[1:])
    print("+ fedsparse", *words[3:], file=sys.stderr, flush=True)
    os.execv(words[0], words)
