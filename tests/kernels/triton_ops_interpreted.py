"""Runs conv2d and spmm on the Triton back ends, gradients and clients too, in the interpreter; prints errors as JSON.

Started by test_triton_ops.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from collections.abc import Callable

import torch
from spmm_interpreted import relative_error
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

# name: (shape of the weight, granularity, arguments of conv2d)
LAYERS = {
    "conv of strips": ((32, 3, 3, 3), 16, {"padding": 1, "stride": 2}),
    "conv of single weights": ((4, 3, 3, 3), 1, {"padding": 1}),
    "conv of vectors without a tensor core form": ((8, 3, 1, 1), 4, {}),
    "linear of strips": ((64, 20), 32, {}),
    "linear of single weights": ((9, 20), 1, {}),
    "conv of 32 rows": ((32, 3, 3, 3), 1, {"padding": 1, "stride": 2}),
}
RUNS = [(name, "triton") for name in LAYERS if name != "conv of 32 rows"]
RUNS += [(name, "condensed") for name in LAYERS if "strips" not in name]
CLIENTS, BATCH = 2, 3
# One client alone, which the same products do as a first of one, for one layer of each family and back end
ALONE = [("conv of strips", "triton"), ("linear of single weights", "triton"), ("conv of 32 rows", "condensed")]
ALL = [(*run, True) for run in RUNS] + [(*run, False) for run in ALONE]


def problem(name: str, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """(the layer as a function of values, x and bias; those of each client, stacked)."""
    shape, granularity, options = LAYERS[name]
    generator = torch.Generator().manual_seed(2)
    groups = torch.rand((shape[0] // granularity, *shape[1:]), generator=generator) < 0.4
    t = Topology.from_mask(groups.repeat_interleave(granularity, 0), granularity)
    size = (4, 3) if len(shape) == 4 else ()
    shapes = ((CLIENTS, t.nnz), (CLIENTS, BATCH, shape[1], *size), (CLIENTS, shape[0]))
    operands = [torch.randn(each, generator=generator, dtype=torch.float64).to(dtype) for each in shapes]
    if len(shape) == 4:
        return lambda v, x, b: ops.conv2d(v, t, x, b, **options), operands
    return lambda v, x, b: ops.spmm(v, t, x, b), operands


def output_and_gradients(run: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """y and the gradients of all operands under a fixed gradient of y."""
    operands = [each.detach().requires_grad_() for each in operands]
    y = run(*operands)
    gy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().to(y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, operands, gy)]


def errors(name: str, backend: str, together: bool) -> dict[str, float]:
    """Relative errors of float32 on a Triton back end against the reference in float64."""
    run, operands = problem(name, torch.float32)
    if together:
        run = torch.vmap(run)
    else:
        operands = [each[0] for each in operands]
    with ops.use_backend(backend):
        found = output_and_gradients(run, operands)
    exact, wide = problem(name, torch.float64)
    with ops.use_backend("reference"):
        if together:
            wanted = expected_of_all(exact, wide)
        else:
            wanted = output_and_gradients(exact, [each[0] for each in wide])
    names = ("y", "values", "x", "bias")
    return {what: relative_error(f, w) for what, f, w in zip(names, found, wanted, strict=True)}


def expected_of_all(layer: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """The clients one after the other, as one function of the stacked operands."""
    return output_and_gradients(lambda *stacked: torch.stack([layer(*each) for each in zip(*stacked)]), operands)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # new memory holds NaN
    found = {f"{name}/{on}/{together}": errors(name, on, together) for name, on, together in ALL}
    json.dump(found, sys.stdout, allow_nan=True)
