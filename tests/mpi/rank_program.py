"""What the MPI tests start: a toy run whose rank 0 prints a hash of weights, masks and metrics.

FAULT = "rank:round:kind" has one rank kill, stop or exit itself, or raise, in the middle of a client's training.
"""

import hashlib
import json
import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedsparse.comm.mpi import world_size
from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Training, exchange
from fedsparse.federated.loop import Loop as _Loop
from fedsparse.federated.ranks import run_on_ranks
from fedsparse.methods import FedTiny


@dataclass(frozen=True)
class Faulty(FedTiny):
    def begin(self, client: Client) -> None:
        rank, round, kind = os.environ.get("FAULT", "-1:0:none").split(":")
        if int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == int(rank) and client.round == int(round):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "exit0":
                os._exit(0)
        if kind == "raise" and client.id == 2 and client.round == int(round):
            raise RuntimeError("this client's sensor is broken")


def experiment() -> Experiment:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    data = Dataset("toy", images, labels, 3, (0.0,), (1.0,))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    method = Faulty(density=0.4, interval=1, last=4, rate=0.3, blocks=1)
    parts = np.split(np.arange(60), [5, 12, 20, 31, 45])
    return Experiment(model, method, data, data, parts, Training(4, 5, 1, 8), seed=2)


def main() -> None:
    torch.set_num_threads(1)
    kept: list[_Loop] = []
    original = Loop.__init__

    def keep(self: Loop, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        kept.append(self)

    Loop.__init__ = keep  # type: ignore[method-assign]
    if world_size() > 1:
        result = run_on_ranks(experiment(), deadline=float(os.environ.get("DEADLINE", "60")), patience=60.0)
        if result is None:
            return
    else:
        from fedsparse.federated import run

        result = run(experiment())
    model = kept[0].server.model
    digest = hashlib.sha256()
    for vector in (exchange.parameters(model), exchange.buffers(model), exchange.mask(model)):
        digest.update(vector.numpy().tobytes())
    metrics = [[r["accuracy"], r["loss"], r["train_loss"], r["bytes_up"], r["bytes_down"]] for r in kept[0].records]
    rejected = [r["rejected"] for r in kept[0].records]
    print(
        json.dumps(
            {"hash": digest.hexdigest(), "metrics": metrics, "rejected": rejected, "lost": result.get("lost_ranks", [])}
        )
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
