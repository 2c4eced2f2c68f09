"""A small residual network on the Triton back end, interpreted, against the reference; prints what was found as JSON.

Started by test_innermost.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from spmm_interpreted import relative_error
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn import explain, innermost, keep_activations, sparsify
from fedsparse.nn.activation_store import BitReLU
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


DENSITIES = {"stem": 0.5, "block.first": 0.4, "block.second": 0.4}


def network() -> dict[str, object]:
    """A step of the network in training, its output in evaluation, and what was copied on the way."""
    torch.manual_seed(0)
    model = sparsify(Network(), DENSITIES, granularity=16)
    exact = copy.deepcopy(model).double()
    x, y = torch.randn(16, 1, 4, 3), torch.arange(16) % 3
    copies: list[int] = []
    plain = strips.to_lanes

    def counted(tensor: Tensor) -> Tensor:
        lanes = plain(tensor)
        copies.append(lanes.data_ptr() != tensor.data_ptr())
        return lanes

    strips.to_lanes = counted
    names = list(model.state_dict())
    with ops.use_backend("triton"):
        output = model(x)
        forward_copies = sum(copies)
        running = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
        F.cross_entropy(output, y).backward()
        evaluated = model.eval()(x)
        model.whole = True
        whole = model(x)
        explained = explain(model)
    strips.to_lanes = plain
    with ops.use_backend("reference"):
        expected = exact(x.double())
        F.cross_entropy(expected, y).backward()
        expected_then = exact.eval()(x.double())
    found = {"output": relative_error(output.detach(), expected.detach())}
    found["in evaluation"] = relative_error(evaluated.detach(), expected_then.detach())
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        found[name] = relative_error(ours.grad, theirs.grad)
    for name, buffer in running.items():
        found[name] = relative_error(buffer, exact.get_buffer(name))
    return {
        "errors": found,
        "forward copies": forward_copies,
        "copies": sum(copies),
        "calls": len(copies),
        "output type": type(output).__name__,
        "whole type": type(whole).__name__,
        "explained": explained.splitlines(),
        "state unchanged": names == list(model.state_dict()),
    }


def levels() -> dict[str, object]:
    """Whether a step at "lossless" has the bits of one at "dense", what was copied, what packed; errors at "bf16"."""
    found: dict[str, list[Tensor]] = {}
    copies: dict[str, int] = {}
    layouts: list[bool] = []
    pack, to_lanes = ops.pack_activation, strips.to_lanes

    def recorded(*args: Any) -> ops.PackedActivation:
        layouts.append((made := pack(*args)).innermost)
        return made

    def counted(tensor: Tensor) -> Tensor:
        lanes = to_lanes(tensor)
        copies[level] += lanes.data_ptr() != tensor.data_ptr()
        return lanes

    ops.pack_activation, strips.to_lanes = recorded, counted
    for level in ("dense", "lossless", "bf16"):
        copies[level] = 0
        torch.manual_seed(0)
        model = keep_activations(sparsify(Network(), DENSITIES, granularity=16), level)
        x, y = torch.randn(16, 1, 4, 3), torch.arange(16) % 3
        with ops.use_backend("triton"):
            output = model(x)
            F.cross_entropy(output, y).backward()
        found[level] = [output.detach(), *(p.grad for p in model.parameters()), *model.buffers()]
    ops.pack_activation, strips.to_lanes = pack, to_lanes
    same = [torch.equal(a, b) for a, b in zip(found["dense"], found["lossless"], strict=True)]
    half = [relative_error(a.double(), b.double()) for a, b in zip(found["bf16"], found["dense"], strict=True)]
    said = explain(model).splitlines()
    return {"same": same, "copies": copies, "innermost": layouts, "half": half, "explained": said}


def bit_relu() -> tuple[str, bool]:
    """Of a convolution's ReLU the type, and whether result and gradient are torch's."""
    x = torch.randn(8, 2, 3, 16).permute(3, 0, 1, 2)
    gy, leaves = torch.randn(x.shape), [x.clone().requires_grad_() for _ in range(2)]
    with ops.use_backend("triton"):
        y = BitReLU()(innermost.innermost(leaves[0] * 1.0))
    z = torch.relu(leaves[1] * 1.0)
    gradients = [torch.autograd.grad(out, leaf, gy)[0] for out, leaf in ((y, leaves[0]), (z, leaves[1]))]
    return type(y).__name__, torch.equal(y.as_subclass(Tensor), z) and torch.equal(*gradients)


Tail = Callable[[nn.Module, Any, Tensor], Any]
# What may follow a norm n of the output x of a convolution: (the function of n(x), x and a residual r)
TAILS: dict[str, Tail] = {
    "relu": lambda n, x, r: F.relu(n(x)),
    "relu in place": lambda n, x, r: nn.ReLU(inplace=True)(n(x)),
    "sum and relu": lambda n, x, r: torch.relu(n(x) + r),
    "the residual first": lambda n, x, r: (r + n(x)).relu(),
    "sum in place": lambda n, x, r: F.relu_(n(x).add_(r)),
    "sum alone": lambda n, x, r: n(x) + r,
    "two norms": lambda n, x, r: torch.relu(n(x) + n(r * 2)),
    "norm alone": lambda n, x, r: n(x),
    "another function": lambda n, x, r: torch.sigmoid(n(x)),
    "joined": lambda n, x, r: torch.cat([x, n(x), r], 1),
    "a multiple": lambda n, x, r: torch.add(r, n(x), alpha=2).relu(),
    "a number": lambda n, x, r: (n(x) + 1) * 2,
    "an ordinary residual": lambda n, x, r: torch.relu(n(x) + torch.ones(x.shape)),
    "used twice": lambda n, x, r: twice(n(x)),
    "in place and used": lambda n, x, r: changed(n(x)),
    "broadcast": lambda n, x, r: n(x) + r[:, :1],
}


def twice(y: Any) -> Any:
    """Both what the ReLU makes of it and it itself."""
    return torch.relu(y) - y


def changed(y: Any) -> Any:
    """A ReLU in place, seen by who holds y."""
    F.relu(y, inplace=True)
    return y + y


def tails(kind: str) -> dict[str, object]:
    """Of each tail the errors of result, gradients and statistics; whether it was an Innermost; what ran in one."""
    found: dict[str, object] = {}
    for name, tail in TAILS.items():
        norm = nn.BatchNorm2d(8) if kind == "batch" else nn.GroupNorm(2, 8)
        exact = copy.deepcopy(norm).double()
        fused: set[str] = set()
        x, r = (
            torch.randn(8, 2, 3, 16, generator=torch.Generator().manual_seed(k)).permute(3, 0, 1, 2) for k in (1, 2)
        )
        own = [each.detach().requires_grad_() for each in (x, r)]
        wide = [each.detach().double().requires_grad_() for each in (x, r)]
        y = innermost.innermost(own[0] * 1.0, fused)
        y = tail(norm, y, innermost.innermost(own[1] * 1.0))
        y = y.tensor() if isinstance(y, innermost.Waiting) else y
        expected = tail(exact, wide[0] * 1.0, wide[1] * 1.0)
        gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        ours = torch.autograd.grad(y, [*own, *norm.parameters()], gy, allow_unused=True)
        theirs = torch.autograd.grad(expected, [*wide, *exact.parameters()], gy.double(), allow_unused=True)
        errors = [relative_error(y.detach(), expected.detach())]
        errors += [relative_error(a, b) for a, b in zip(ours, theirs) if b is not None]
        errors += [relative_error(a.double(), b.double()) for a, b in zip(norm.buffers(), exact.buffers())]
        assert [a is None for a in ours] == [b is None for b in theirs]
        found[name] = {"error": max(errors), "type": type(y).__name__, "fused": sorted(fused)}
    return found


def changed_input() -> str:
    """What is said where the input of a norm is changed before the norm runs."""
    x = innermost.innermost(torch.randn(8, 2, 3, 16).permute(3, 0, 1, 2))
    y = nn.BatchNorm2d(8).requires_grad_(False)(x)
    x.add_(1)
    try:
        torch.relu(y)
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    result = {
        "network": network(),
        "levels": levels(),
        "relu": bit_relu(),
        "batch": tails("batch"),
        "group": tails("group"),
        "changed": changed_input(),
    }
    json.dump(result, sys.stdout)
