"""A small residual network on the Triton back end, interpreted, against the reference; prints what was found as JSON.

Started by test_innermost.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import copy
import json
import sys

import torch
from spmm_interpreted import relative_error
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn import innermost, sparsify
from fedsparse.ops import strips


class Block(nn.Module):
    """conv, norm, ReLU, conv, norm, plus the input, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x and the result [B, 16, H, W]."""
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + x)


class Network(nn.Module):
    """A stem, a block, the mean over pixels, a classifier; with `whole` the block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(1, 16, 3, padding=1), Block(), nn.Linear(16, 3)
        self.whole = False

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, H, W]."""
        y = self.block(self.stem(x))
        return y if self.whole else self.head(y.mean((2, 3)))


def main() -> dict[str, object]:
    torch.manual_seed(0)
    dense = Network()
    model = sparsify(dense, {"stem": 0.5, "block.first": 0.4, "block.second": 0.4}, granularity=16)
    exact = copy.deepcopy(model).double()
    x, y = torch.randn(16, 1, 4, 3), torch.arange(16) % 3
    copies: list[int] = []
    plain, norms = strips.to_lanes, []
    own_norm = innermost._batch_norm

    def counted(tensor: Tensor) -> Tensor:
        lanes = plain(tensor)
        copies.append(lanes.data_ptr() != tensor.data_ptr())
        return lanes

    def norm(*args: object, **kwargs: object) -> object:
        norms.append(1)
        return own_norm(*args, **kwargs)

    strips.to_lanes, innermost._batch_norm = counted, norm
    with ops.use_backend("triton"):
        output = model(x)
        forward_copies = sum(copies)
        running = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
        nn.functional.cross_entropy(output, y).backward()
        model.whole = True
        whole = model(x)
    with ops.use_backend("reference"):
        expected = exact(x.double())
        nn.functional.cross_entropy(expected, y).backward()
    found = {"output": relative_error(output.detach(), expected.detach())}
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        found[name] = relative_error(ours.grad, theirs.grad)
    for name, buffer in running.items():
        found[name] = relative_error(buffer, exact.get_buffer(name))
    return {
        "errors": found,
        "norms": len(norms),
        "forward copies": forward_copies,
        "copies": sum(copies),
        "calls": len(copies),
        "output type": type(output).__name__,
        "whole type": type(whole).__name__,
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
