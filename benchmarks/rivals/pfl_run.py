"""A task in pfl-research: `python pfl_run.py TASK`, run by its own interpreter; prints JSON."""

import json
import sys

import numpy as np
import pfl
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from tasks import TASKS, WARM_UP, Clock, Task, build, images
from torch import Tensor, nn
from torch.nn import functional


class Trained(nn.Module):
    """A model with the two functions that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of a batch."""
        return functional.cross_entropy(self.model(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing is evaluated."""
        return {}


class Rounds(TrainingProcessCallback):
    """Marks the end of each round."""

    def __init__(self) -> None:
        self.clock = Clock()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Called by pfl."""
        self.clock.mark()
        return False, Metrics()


def run(task: Task, watch: TrainingProcessCallback) -> None:
    """The task's rounds; `watch` is called after each."""
    x, y = images(task)
    parts = torch.arange(len(y)).view(task.clients, task.samples)
    users = {str(k): Dataset((x[part], y[part]), user_id=str(k)) for k, part in enumerate(parts)}
    rng = np.random.default_rng(0)
    federated = FederatedDataset(users.__getitem__, lambda: str(rng.integers(task.clients)))
    model = Trained(build(task))
    trained = PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0))
    rounds = task.rounds + WARM_UP
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, 10 * rounds, task.per_round, None),
        SimulatedBackend(training_data=federated, val_data=None),
        trained,
        NNTrainHyperParams(local_batch_size=task.batch, local_num_epochs=1, local_learning_rate=task.lr),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[watch],
    )


def main() -> None:
    torch.set_num_threads(1)
    watch = Rounds()
    run(TASKS[sys.argv[1]], watch)
    print(json.dumps({"version": pfl.__version__, "torch": torch.__version__, "rounds": watch.clock.rounds()}))


if __name__ == "__main__":
    main()
