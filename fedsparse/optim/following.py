"""SGD and Adam as torch has them, plus `follow`, by which their state moves with a mask change.

A sparse layer's parameter is `values` [nnz], so torch's own optimizers already step only active weights and keep
state only for them. What they lack is what happens when nnz changes: a grown weight starts with state 0, a pruned
one's state is gone.
"""

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


class SGD(Following, torch.optim.SGD):
    """torch.optim.SGD (momentum, weight decay, Nesterov) whose momentum follows mask changes."""


class Adam(Following, torch.optim.Adam):
    """torch.optim.Adam whose two moments follow mask changes; the step count of the layer goes on."""
