"""The level "recompute" where images stand innermost, on the Triton back end, interpreted; prints JSON.

Started by test_recompute_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn import explain, keep_activations, sparsify
from fedsparse.nn.level import Levels
from fedsparse.ops import strips
from fedsparse.report.kept import functions_of, kept_by_kind

CHANNELS, HIGH, WIDE, BATCH, DENSITY = 16, 2, 2, 16, 0.1
CONVOLUTIONS = ("stem", "a1", "a2", "b1", "b2", "down")


class Network(nn.Module):
    """A stem, a residual block, one of stride 2 whose other path has a convolution and a norm, a classifier."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.a1, self.a2, self.b2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(3))
        self.b1 = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, padding=1, bias=False)
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 1, 2, bias=False)
        self.norms = nn.ModuleDict(
            {name: nn.BatchNorm2d(CHANNELS) if norm == "batch" else nn.GroupNorm(4, CHANNELS) for name in CONVOLUTIONS}
        )
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, H, W]."""
        x = torch.relu(self.norms["stem"](self.stem(x)))
        y = torch.relu(self.norms["a1"](self.a1(x)))
        x = torch.relu(self.norms["a2"](self.a2(y)) + x)
        y = torch.relu(self.norms["b1"](self.b1(x)))
        x = torch.relu(self.norms["b2"](self.b2(y)) + self.norms["down"](self.down(x)))
        return self.head(x.mean((2, 3)))


def made(norm: str, levels: Levels) -> nn.Module:
    """The network, the same for all levels; no norm is the identity."""
    torch.manual_seed(0)
    model = sparsify(Network(norm), dict.fromkeys(CONVOLUTIONS, DENSITY), granularity=16)
    for each in model.norms.values():
        nn.init.normal_(each.weight)
        nn.init.normal_(each.bias)
    return keep_activations(model, levels)


def loss_of(model: nn.Module, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the batch."""
    images = torch.randn(BATCH, 1, HIGH, WIDE, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(images)
    return F.cross_entropy(output.float(), torch.arange(BATCH) % 3), images


def step(model: nn.Module, autocast: bool = False) -> tuple[list[Tensor], dict[str, int], int]:
    """Loss, gradients and statistics; bytes kept by kind; how many convolutions ran in the backward pass."""
    ran: list[int] = []
    loss, images = loss_of(model, autocast)
    functions = functions_of(loss)
    kept = kept_by_kind(functions, lambda node: "", [*model.parameters(), *model.buffers(), images])[""]
    del functions
    run = strips.lanes_product

    def counted(*args: Any) -> Tensor:
        ran.append(1)
        return run(*args)

    strips.lanes_product = counted
    loss.backward()
    strips.lanes_product = run
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()], kept, len(ran)


def compared(norm: str, *levels: Levels, autocast: bool = False) -> list[dict[str, Any]]:
    """Beside "dense": what is kept, how many convolutions ran again, whether all bits are the same; what is said."""
    dense, kept_by_dense, _ = step(made(norm, "dense"), autocast)
    found = []
    for each in levels:
        model = made(norm, each)
        numbers, kept, again = step(model, autocast)
        found.append(
            {
                "same": [torch.equal(a, b) for a, b in zip(dense, numbers, strict=True)],
                "dense": kept_by_dense,
                "kept": kept,
                "convolutions": again,
                "explained": explain(model).splitlines(),
            }
        )
    return found


def twice() -> tuple[bool, str]:
    """Whether a second backward pass has the bits of the first; what a third says when a norm's bias was changed."""
    model = made("batch", "recompute")
    loss, parameters = loss_of(model)[0], list(model.parameters())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    with torch.no_grad():
        model.get_parameter("norms.stem.bias").mul_(2)
    try:
        loss.backward()
    except RuntimeError as error:
        return all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), str(error)
    return False, ""


MIXED = {"stem": "lossless", "a*": "recompute", "b1": "dense", "b2": "recompute", "down": "lossless"}


if __name__ == "__main__":
    with ops.use_backend("triton"):
        result: dict[str, Any] = {"twice": twice()}
        result["batch"], result["mixed"] = compared("batch", "recompute", MIXED)
        (result["group"],) = compared("group", "recompute")
        (result["autocast"],) = compared("batch", "recompute", autocast=True)
    json.dump(result, sys.stdout)
