"""K clients' copies of a model trained at once: one forward and backward pass for a batch of each.

`Cohort` holds the clients' parameters and norm statistics stacked, [clients, ...], and runs the model for all by
`torch.func.vmap`: dense layers become batched products and grouped convolutions, sparse ones take a client dimension
(see `ops.algebra`), norms keep each client's own statistics. Every client takes the step that it would take alone; only
the order of floating sums may differ. Clients share the masks. Models whose forward pass draws random numbers (dropout)
are refused by vmap, and the blocked region is left off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsparse.nn.region import use_region
from fedsparse.nn.sparse_layer import SparseLayer

Batch = tuple[Tensor, Tensor]


class Cohort:
    """K copies of a model's parameters and buffers, and an optimizer over all of them.

    model: gives the structure, the masks and the starting weights; it is not changed before `write`. optimizer: makes
    a torch optimizer of parameters. loss: of one client's output and target, a mean over its batch. proximal: mu of
    FedProx (Li et al., MLSys 2020), whose gradient mu (w - start) is added.
    """

    def __init__(
        self,
        model: nn.Module,
        clients: int,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor],
        proximal: float = 0.0,
    ) -> None:
        self.model, self.clients, self.loss, self.mu = model, clients, loss, proximal
        self.parameters = {
            name: nn.Parameter(_stacked(parameter, clients), parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }
        self.buffers = {name: _stacked(buffer, clients) for name, buffer in _own_buffers(model)}
        self.optimizer = optimizer(list(self.parameters.values()))
        self.anchor = {p: p.detach().clone() for p in self.parameters.values()} if self.mu else {}

    def step(self, batches: Sequence[Batch | None]) -> Tensor:
        """One local iteration of every client that has a batch: losses [clients], NaN where there is none.

        Batches of equal shape are computed together.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        losses: dict[int, Tensor] = {}
        with use_region(False):
            for who in _of_equal_shape(batches):
                x, y = (torch.stack(tensors) for tensors in zip(*(batches[k] for k in who)))
                found = self._losses(who, x, y)
                found.sum().backward()
                losses |= zip(who, found.detach())
        idle = [k for k, batch in enumerate(batches) if batch is None]
        self._move(idle)
        none = next(iter(losses.values())).new_tensor(torch.nan)
        return torch.stack([losses.get(k, none) for k in range(self.clients)])

    def _losses(self, who: list[int], x: Tensor, y: Tensor) -> Tensor:
        """Losses [who] of those clients; their norm statistics move."""
        everyone = len(who) == self.clients
        parameters: dict[str, Tensor] = dict(self.parameters)
        buffers = self.buffers
        if not everyone:
            parameters = {name: tensor[who] for name, tensor in parameters.items()}
            buffers = {name: tensor[who] for name, tensor in buffers.items()}

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self.loss(functional_call(self.model, (parameters, buffers), (x,)), y)

        found = vmap(loss)(parameters, buffers, x, y)
        if not everyone:
            for name, tensor in buffers.items():
                self.buffers[name][who] = tensor
        return found

    @torch.no_grad()
    def _move(self, idle: list[int]) -> None:
        """The optimizer's step; what belongs to idle clients stays."""
        for parameter, start in self.anchor.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.mu)
        if not idle:
            self.optimizer.step()
            return
        kept = [(tensor, tensor[idle]) for tensor in self._state()]
        self.optimizer.step()
        for tensor, rows in kept:
            tensor[idle] = rows

    def _state(self) -> Iterator[Tensor]:
        """The stacked tensors that a step changes."""
        for parameter in self.parameters.values():
            yield parameter.detach()
            for entry in self.optimizer.state.get(parameter, {}).values():
                if isinstance(entry, Tensor) and entry.dim() > 0:
                    yield entry

    @torch.no_grad()
    def write(self, client: int) -> None:
        """Copy one client's parameters and buffers into the model."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.parameters[name][client])
        for name, buffer in _own_buffers(self.model):
            buffer.copy_(self.buffers[name][client])


def _stacked(tensor: Tensor, clients: int) -> Tensor:
    return tensor.detach().expand(clients, *tensor.shape).clone()


def _own_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that differ from client to client: all but the index arrays of sparse layers."""
    for name, module in model.named_modules():
        if not isinstance(module, SparseLayer):
            for key, buffer in module.named_buffers(recurse=False):
                yield f"{name}.{key}" if name else key, buffer


def _of_equal_shape(batches: Sequence[Batch | None]) -> list[list[int]]:
    """The clients that have a batch, those with batches of one shape together."""
    found: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for k, batch in enumerate(batches):
        if batch is not None:
            found.setdefault((batch[0].shape, batch[1].shape), []).append(k)
    return list(found.values())
