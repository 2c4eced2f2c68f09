"""The federated loop: a method's hooks, clients, the server, workers, and the run of an experiment."""

from fedsparse.federated.client import Client, Training
from fedsparse.federated.errors import RunError, StoppedError
from fedsparse.federated.experiment import Checkpoints, Experiment
from fedsparse.federated.loop import Loop, run
from fedsparse.federated.method import Method
from fedsparse.federated.server import Server, evaluate
from fedsparse.federated.total import Total

__all__ = [
    "Checkpoints",
    "Client",
    "Experiment",
    "Loop",
    "Method",
    "RunError",
    "Server",
    "StoppedError",
    "Total",
    "Training",
    "evaluate",
    "run",
]
