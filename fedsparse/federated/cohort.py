"""Several clients' local training at once (`nn.Cohort`), each on its own batches in its own order.

For methods that leave local training as FedAvg has it (`admits`). Clients may have different numbers of batches, and a
smaller last batch. All is kept for the backward pass: levels of `train.activations` are for one client at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedsparse.federated.client import Client, tell_levels
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.method import Method
from fedsparse.nn.cohort import Batch, Cohort

_LOCAL = ("begin", "loss", "step", "epoch_end")


def admits(method: Method) -> bool:
    """Whether the method leaves local training as it is, so that a cohort may do it."""
    return all(getattr(type(method), name) is getattr(Method, name) for name in _LOCAL)


@dataclass
class _Progress:
    """One client's way through its epochs: losses of the present one, and the batches to come."""

    client: Client
    epoch: int = -1
    sum: float = 0.0
    seen: int = 0
    batches: Iterator[tuple[int, Batch]] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = self._all()

    def _all(self) -> Iterator[tuple[int, Batch]]:
        training = self.client.training
        for epoch in range(training.epochs):
            for batch in self.client.batches(f"epoch {epoch}", training.augment):
                yield epoch, batch

    def next(self) -> Batch | None:
        """The next batch, None after the last."""
        epoch, batch = next(self.batches, (self.epoch, None))
        if epoch != self.epoch:
            self.epoch, self.sum, self.seen = epoch, 0.0, 0
        self.client.batch = batch or self.client.batch
        return batch

    def count(self, batch: Batch | None, loss: float) -> None:
        """Note the loss of a step."""
        if batch is not None:
            self.sum, self.seen = self.sum + loss * len(batch[1]), self.seen + len(batch[1])
            self.client.iteration += 1
            self.client.loss = self.sum / self.seen


def train_together(clients: Sequence[Client], method: Method) -> Iterator[Client]:
    """`client.train` for all of them at once; then each client, while the model holds its trained weights.

    clients: of one round, with one model that holds the weights they start from. ValueError for a method that changes
    local training.
    """
    if not admits(method):
        raise ValueError(f"{method.name} changes local training, so that its clients train one after the other")
    model, training, t = clients[0].model, clients[0].training, clients[0].round
    tell_levels(model, "dense")
    model.train()
    cohort = Cohort(
        model, len(clients), lambda them: training.make_optimizer(them, t), cross_entropy, training.proximal
    )
    ways = [_Progress(client) for client in clients]
    while any(batches := [way.next() for way in ways]):
        losses = cohort.step(batches).tolist()
        for way, batch, loss in zip(ways, batches, losses, strict=True):
            way.count(batch, loss)
    for k, client in enumerate(clients):
        cohort.write(k)
        yield client
