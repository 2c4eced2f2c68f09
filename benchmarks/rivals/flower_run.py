"""A task in Flower's simulation: `python flower_run.py TASK`, run by its own interpreter; prints JSON.

One virtual client at a time (num_cpus = 1 of 1), so that all engines use one core. CPU seconds are those of the whole
process tree, Ray's processes included. Ray unpickles this file's classes for every client, so what is to be made once
a process, the data, is kept in a module.
"""

import json
import os
import sys

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

import importlib.metadata

import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from tasks import TASKS, WARM_UP, Clock, build, images
from torch.nn import functional

TASK = TASKS[sys.argv[1] if len(sys.argv) > 1 else os.environ["RIVAL_TASK"]]
os.environ["RIVAL_TASK"] = TASK.model


class TorchClient(NumPyClient):
    """Local SGD on a client's samples."""

    def __init__(self, number: int) -> None:
        self.x, self.y = images(TASK)
        self.part = slice(number * TASK.samples, (number + 1) * TASK.samples)

    def fit(self, parameters, config):
        """Called by Flower."""
        torch.set_num_threads(1)
        model = build(TASK)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in zip(model.state_dict(), parameters)})
        optimizer = torch.optim.SGD(model.parameters(), lr=TASK.lr)
        for x, y in zip(self.x[self.part].split(TASK.batch), self.y[self.part].split(TASK.batch)):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return [v.numpy() for v in model.state_dict().values()], TASK.samples, {}


class Timed(FedAvg):
    """FedAvg that marks the end of each round."""

    clock = Clock(tree=True)

    def aggregate_fit(self, server_round, results, failures):
        """Called by Flower."""
        assert not failures, failures[0]
        aggregated = super().aggregate_fit(server_round, results, failures)
        self.clock.mark()
        return aggregated


def client(context: Context):
    """The client that Ray asks for."""
    return TorchClient(int(context.node_config["partition-id"])).to_client()


def server(context: Context) -> ServerAppComponents:
    """FedAvg without evaluation."""
    first = ndarrays_to_parameters([v.numpy() for v in build(TASK).state_dict().values()])
    strategy = Timed(
        fraction_fit=TASK.per_round / TASK.clients,
        min_fit_clients=TASK.per_round,
        min_available_clients=TASK.clients,
        fraction_evaluate=0.0,
        initial_parameters=first,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=TASK.rounds + WARM_UP))


if __name__ == "__main__":
    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=client),
        num_supernodes=TASK.clients,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1}},
    )
    version = importlib.metadata.version("flwr")
    print(json.dumps({"version": version, "torch": torch.__version__, "rounds": Timed.clock.rounds()}))
