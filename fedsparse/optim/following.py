"""SGD and Adam as torch has them, plus `follow`, by which their state moves with a mask change.

A sparse layer's parameter is `values` [nnz], so torch's own optimizers already step only active weights and keep
state only for them. What they lack is what happens when nnz changes: a grown weight starts with state 0, a pruned
one's state is gone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.topology import Move


class Following(torch.optim.Optimizer):
    """Mix-in for a torch optimizer whose per-weight state tensors have the parameter's shape."""

    def follow(self, values: nn.Parameter, move: Move) -> None:
        """Move the state of `values` to where `SparseLayer.set_topology` moved the weights."""
        state = self.state.get(values, {})
        for name, entry in state.items():
            if isinstance(entry, Tensor) and entry.dim() > 0:
                state[name] = move.apply(entry)

    def restart(self, lr: float) -> None:
        """Be as new, with this learning rate: no state, no hooks, one group of all parameters."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.param_groups = [{**self.defaults, "params": parameters, "lr": lr}]
        self.state.clear()
        self._optimizer_step_pre_hooks.clear()
        self._optimizer_step_post_hooks.clear()

    def descend(self) -> None:
        """The engine's step: `step`, but without torch's hooks and marks for its profiler where that can be."""
        self.step()


class SGD(Following, torch.optim.SGD):
    """torch.optim.SGD whose momentum follows mask changes."""

    def descend(self) -> None:
        """As `step`, to the same bits; on the CPU with nothing but the arithmetic."""
        if any(p.is_cuda for group in self.param_groups for p in group["params"]):
            self.step()  # all tensors at once
            return
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(self._direction(parameter, parameter.grad, group), alpha=-group["lr"])

    def _direction(self, parameter: nn.Parameter, direction: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient, after weight decay and momentum."""
        momentum = group["momentum"]
        if group["maximize"]:
            direction = -direction
        if group["weight_decay"] != 0:
            direction = direction.add(parameter, alpha=group["weight_decay"])
        if momentum == 0:
            return direction
        buffer = self.state[parameter].get("momentum_buffer")
        if buffer is None:
            buffer = self.state[parameter]["momentum_buffer"] = direction.clone()
        else:
            buffer.mul_(momentum).add_(direction, alpha=1 - group["dampening"])
        return direction.add(buffer, alpha=momentum) if group["nesterov"] else buffer


class Adam(Following, torch.optim.Adam):
    """torch.optim.Adam whose two moments follow mask changes; the step count of the layer goes on."""
