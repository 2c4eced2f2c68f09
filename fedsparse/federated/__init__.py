"""The federated loop: a method's hooks, clients, the server, workers, and the run of an experiment."""

from fedsparse.federated.client import Client, Training
from fedsparse.federated.errors import RunError
from fedsparse.federated.experiment import Experiment
from fedsparse.federated.loop import Loop, run
from fedsparse.federated.method import Method
from fedsparse.federated.server import Server, evaluate
from fedsparse.federated.total import Total

__all__ = ["Client", "Experiment", "Loop", "Method", "RunError", "Server", "Total", "Training", "evaluate", "run"]
