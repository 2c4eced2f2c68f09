"""The federated loop: a method's hooks, clients, the server, workers, and the run of an experiment."""

from fedsparse.federated.client import Client, Training
from fedsparse.federated.errors import RunError, StoppedError
from fedsparse.federated.experiment import Checkpoints, Experiment, Failures
from fedsparse.federated.loop import Loop
from fedsparse.federated.method import Method
from fedsparse.federated.running import run
from fedsparse.federated.server import Server, evaluate
from fedsparse.federated.total import Total

__all__ = [
    "Checkpoints",
    "Client",
    "Experiment",
    "Failures",
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
