"""What `test_limits` starts: a run whose clients have different memory limits. Rank 0 prints a line of JSON."""

import hashlib
import json

import numpy as np
import torch
from torch import nn

from fedsparse.comm.mpi import world_size
from fedsparse.data import Dataset
from fedsparse.federated import Experiment, Training, exchange, run
from fedsparse.federated.loop import Loop
from fedsparse.federated.ranks import run_on_ranks
from fedsparse.methods import FedDST


def experiment() -> Experiment:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 16, 16, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))
    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = Dataset("toy", images, torch.arange(200) % 4, 4, (0.0,) * 3, (1.0,) * 3)
    parts = np.split(np.arange(200), [64, 128, 192])
    method = FedDST(density=0.2, interval=1, rate=0.3, last=3)
    limits = [2**30, 1_400_000, 1_000_000, 2**30]
    return Experiment(model, method, data, data, parts, Training(3, 4, 1, 32), seed=2, memory_limits=limits)


def main() -> None:
    torch.set_num_threads(1)
    kept: list[Loop] = []
    original = Loop.__init__

    def keep(self: Loop, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        kept.append(self)

    Loop.__init__ = keep  # type: ignore[method-assign]
    trial = experiment()
    if (run_on_ranks(trial) if world_size() > 1 else run(trial)) is None:
        return
    model = kept[-1].server.model
    digest = hashlib.sha256()
    for vector in (exchange.parameters(model), exchange.buffers(model), exchange.mask(model)):
        digest.update(vector.numpy().tobytes())
    records = [{key: r[key] for key in ("plans", "loss", "bytes_down", "incidents")} for r in kept[-1].records]
    print(json.dumps({"hash": digest.hexdigest(), "records": records}), flush=True)


if __name__ == "__main__":
    main()
