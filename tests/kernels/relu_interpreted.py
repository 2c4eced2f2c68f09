"""`ops.relu` on the Triton back end, in the interpreter, against the reference; prints what is equal.

Started by test_relu_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from itertools import product

import torch
from torch import Tensor

from fedsparse import ops

SHAPES = {
    "several blocks, ends within a byte": (5, 3, 11, 13),
    "one": (1,),
    "whole": (16, 4, 8, 4),
    "nothing": (0, 3),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
LIMITS = {"relu": torch.inf, "relu6": 6.0}
RUNS = list(product(SHAPES, DTYPES, LIMITS))


def stretched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Below 0 to above 6, the edges, both zeros and NaN among them."""
    x = 8 * torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    edges = torch.tensor([0.0, -0.0, 6.0, torch.nan, -torch.inf, 5.984375, -1e-7])[: x.numel()]
    x.view(-1)[: len(edges)] = edges
    return x.to(dtype)


def steps(x: Tensor, backend: str, limit: float, inplace: bool) -> list[Tensor]:
    """Output, gradient, and the gradient's own by the gradient of the output."""
    gy = torch.linspace(-2, 5, x.numel(), dtype=torch.float64).to(x.dtype).reshape(x.shape).requires_grad_()
    leaf = x.clone().requires_grad_()
    with ops.use_backend(backend):
        start = leaf * 1
        y = ops.relu(start, inplace, limit)
        assert (y is start) == inplace
        assert y.stride() == start.stride()
        (gx,) = torch.autograd.grad(y, leaf, gy, create_graph=True)
        (ggy,) = torch.autograd.grad(gx, gy, gy.detach() + 1)
        without = ops.relu(x.clone(), inplace, limit)
    return [y.detach(), gx.detach(), ggy, without]


def equal(name: str, dtype: str, limit: str) -> bool:
    """Of the tensor as it is, and with its images innermost; in place too."""
    x, same = stretched(SHAPES[name], DTYPES[dtype]), []
    laid = [x] if x.dim() < 4 else [x, x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)]
    for each, inplace in product(laid, (False, True)):
        found = steps(each, "triton", LIMITS[limit], inplace)
        expected = steps(x, "reference", LIMITS[limit], inplace)
        same += [
            a.dtype == b.dtype and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(found, expected)
        ]
        same.append(torch.equal(found[0].isnan(), expected[0].isnan()))
    return all(same)


def kept() -> tuple[int, bool]:
    """Bytes that are kept of 13 * 40 elements, and whether they are the reference's bits."""
    x = stretched((13, 40), torch.float32).requires_grad_()
    saved: list[Tensor] = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, id):
            ops.relu(x)
    ours, theirs = saved
    return ours.nbytes, torch.equal(ours, theirs)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # new memory holds NaN
    json.dump({"/".join(each): equal(*each) for each in RUNS} | {"kept": kept()}, sys.stdout)
