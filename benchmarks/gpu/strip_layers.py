"""Sparse 3x3 convolutions on Triton kernels, images innermost in memory: strips of V output channels, or V = 1."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedsparse.ops.algebra import products_of
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

from .bench import Bench, checked, relative_error
from .layers import LIMITS, STAGES, Operands, Stage, dtype_of, operands
from .layers import label as layer_label
from .rows import Case, Measured

_GEOMETRY = ((3, 3), (1, 1), (1, 1), (1, 1))
# (V, precision, density, batch, back end), most important first; V = 1 is single weights
_PLAN = [
    *[(32, "bf16", density, 64, "triton") for density in (0.1, 0.05, 0.2)],
    *[(v, "bf16", 0.1, 64, "triton") for v in (16, 64)],
    *[(1, "bf16", density, 64, "condensed") for density in (0.05, 0.02)],
    (1, "fp32", 0.05, 64, "triton"),
    (32, "tf32", 0.1, 64, "triton"),
    *[(32, "bf16", density, 256, "triton") for density in (0.1, 0.05)],
    *[(1, "bf16", density, 64, "triton") for density in (0.05, 0.01)],
    (1, "bf16", 0.01, 64, "condensed"),
    *[(1, "tf32", density, 64, "condensed") for density in (0.05, 0.01)],
    (1, "fp32", 0.01, 64, "triton"),
    (32, "fp32", 0.1, 64, "triton"),
]


def cases() -> list[Case]:
    """Every stage for each of the plan; compared with the dense layer in channels_last."""
    return [
        Case(
            f"{backend} conv {stage.name} b{batch} {precision} density {density:.0%} V={vector}",
            partial(
                layer,
                stage=stage,
                vector=vector,
                precision=precision,
                density=density,
                batch=batch,
                backend=backend,
            ),
            versus=layer_label(stage, precision, "channels_last", batch),
            seconds=1.5,
        )
        for vector, precision, density, batch, backend in _PLAN
        for stage in STAGES
    ]


def topology_of(rows: int, channels: int, density: float, vector: int) -> Topology:
    """Random columns of V rows each; one at least."""
    groups = torch.rand((rows // vector, channels, 3, 3), generator=torch.Generator().manual_seed(11)) < density
    groups.reshape(-1)[0] = True
    return Topology.from_mask(groups.repeat_interleave(vector, 0), vector)


def layer(
    bench: Bench, stage: Stage, vector: int, precision: str, density: float, batch: int, backend: str
) -> Measured:
    """Milliseconds of the three passes; peak of running each once; rate of useful operations of the forward.

    In a smoke test on the CPU the reference stands in for the Triton kernels.
    """
    vector = bench.size(vector, 1)
    plain = operands(bench, stage, precision, batch)
    t = topology_of(plain.w.shape[0], plain.w.shape[1], density, vector).to(bench.device)
    masked = Operands(plain.x, plain.gy, plain.w * t.mask())
    with bench.reference():
        expected = {name: run() for name, run in masked.to(torch.float64).passes().items()}
    expected["weight"] = t.pack(expected["weight"])
    dtype = dtype_of(precision)
    values, index = t.pack(masked.w).to(dtype), Index.of(t)
    x, gy = (_innermost(each.to(dtype)) for each in (plain.x, plain.gy))
    geometry = (*_GEOMETRY, (x.shape[2], x.shape[3]))
    products = products_of("conv2d", backend if bench.cuda else "reference", vector)
    passes = {
        "forward": lambda: products.product(values, index, x, None, geometry),
        "input": lambda: products.transposed(values, index, gy, geometry),
        "weight": lambda: products.sampled(index, gy, x, geometry),
    }
    error = 0.0
    with bench.precision(precision):
        for name, run in passes.items():
            error = max(error, checked(relative_error(run(), expected[name]), LIMITS[precision], f"the {name} pass"))
        times = {name: bench.time(run, flush=True, seconds=bench.seconds / 4) for name, run in passes.items()}
        peak = bench.peak(lambda: [run() for run in passes.values()])
    useful = 2 * t.nnz * x.shape[0] * x.shape[2] * x.shape[3]
    return Measured(times, error, peak, useful / times["forward"].median / 1e9, "TFLOP/s")


def _innermost(x: Tensor) -> Tensor:
    """The same tensor with its images innermost in memory: the kernels take and give it so."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
