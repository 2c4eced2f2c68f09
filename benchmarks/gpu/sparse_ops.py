"""This package's ops on the device: the dense back end's convolutions, the Triton products, unpack and gather."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

from .bench import Bench, checked, relative_error
from .layers import LIMITS, STAGES, Stage, dtype_of, operands
from .layers import label as layer_label
from .rows import Case, Measured

DENSITIES = (0.05, 0.2, 0.1, 0.01)
LINEAR = ((512, 64), (4096, 1024))


def cases() -> list[Case]:
    """Convolutions, the linear family against cuBLAS, then what unpack and gather alone cost."""
    convolutions = [(stage, "tf32", density) for density in DENSITIES for stage in STAGES]
    convolutions[4:4] = [(stage, precision, 0.05) for precision in ("fp32", "bf16") for stage in STAGES]
    listed = [
        Case(
            f"conv {stage.name} {precision} density {density:.0%} dense back end",
            partial(convolution, stage=stage, precision=precision, density=density),
            versus=layer_label(stage, precision, "NCHW"),
        )
        for stage, precision, density in convolutions
    ]
    for width, batch in LINEAR:
        listed.append(Case(f"linear {width} b{batch} fp32 dense", partial(dense_linear, width=width, batch=batch)))
        listed += [
            Case(
                f"linear {width} b{batch} fp32 density {density:.0%} {backend}",
                partial(linear, width=width, batch=batch, density=density, backend=backend),
                versus=f"linear {width} b{batch} fp32 dense",
            )
            for density in DENSITIES
            for backend in ("triton", "dense")
        ]
    return listed + [
        Case(f"{name} 512x4608 fp32 density 5%", partial(move, name=name)) for name in ("unpack", "gather")
    ]


def random_topology(bench: Bench, shape: tuple[int, ...], density: float) -> Topology:
    """Uniformly random active weights; one at least."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(11)) < density
    mask.reshape(-1)[0] = True
    return Topology.from_mask(mask).to(bench.device)


def convolution(bench: Bench, stage: Stage, precision: str, density: float) -> Measured:
    """Milliseconds of conv2d, conv2d_input and conv2d_weight at that density."""
    plain = operands(bench, stage, precision)
    topology = random_topology(bench, tuple(plain.w.shape), density)
    masked = type(plain)(plain.x, plain.gy, plain.w * topology.mask())
    with bench.reference():
        expected = {name: run() for name, run in masked.to(torch.float64).passes().items()}
    expected["weight"] = topology.pack(expected["weight"])
    laid = masked.to(dtype_of(precision))
    values = topology.pack(laid.w)
    size = (laid.x.shape[2], laid.x.shape[3])
    passes = {
        "forward": lambda: ops.conv2d(values, topology, laid.x, padding=1),
        "input": lambda: ops.conv2d_input(values, topology, laid.gy, size, padding=1),
        "weight": lambda: ops.conv2d_weight(topology, laid.gy, laid.x, padding=1),
    }
    with bench.precision(precision), torch.no_grad(), ops.use_backend("dense"):
        error = 0.0
        for name, run in passes.items():
            error = max(error, checked(relative_error(run(), expected[name]), LIMITS[precision], f"the {name} pass"))
        seconds = bench.seconds / 2
        times = {name: bench.time(run, flush=True, seconds=seconds) for name, run in passes.items()}
    return Measured(times, error)


def _linear_operands(bench: Bench, width: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    width, batch = bench.size(width, 24), bench.size(batch, 7)
    w = bench.random(width, width, seed=3) / width**0.5
    return w, bench.random(batch, width, seed=1), bench.random(batch, width, seed=2)


def dense_linear(bench: Bench, width: int, batch: int) -> Measured:
    """The three products of a dense linear layer in strict fp32."""
    w, x, gy = _linear_operands(bench, width, batch)
    passes = {"forward": lambda: F.linear(x, w), "input": lambda: gy @ w, "weight": lambda: gy.T @ x}
    with bench.precision("fp32"):
        error = checked(relative_error(passes["forward"](), x.double() @ w.double().T), 1e-4, "the forward")
        times = {name: bench.time(run, flush=True, seconds=bench.seconds / 2) for name, run in passes.items()}
    return Measured(times, error)


def linear(bench: Bench, width: int, batch: int, density: float, backend: str) -> Measured:
    """spmm, spmm_t and sddmm on one back end."""
    if backend == "triton":
        bench.need_cuda("Triton")
    w, x, gy = _linear_operands(bench, width, batch)
    topology = random_topology(bench, tuple(w.shape), density)
    values, masked = topology.pack(w), (w * topology.mask()).double()
    expected = {
        "forward": x.double() @ masked.T,
        "input": gy.double() @ masked,
        "weight": topology.pack(gy.double().T @ x.double()),
    }
    passes = {
        "forward": lambda: ops.spmm(values, topology, x),
        "input": lambda: ops.spmm_t(values, topology, gy),
        "weight": lambda: ops.sddmm(topology, gy, x),
    }
    with bench.precision("fp32"), torch.no_grad(), ops.use_backend(backend):
        errors = [checked(relative_error(run(), expected[name]), 1e-4, name) for name, run in passes.items()]
        times = {name: bench.time(run, flush=True, seconds=bench.seconds / 2) for name, run in passes.items()}
    return Measured(times, max(errors))


def move(bench: Bench, name: str) -> Measured:
    """unpack or gather of the largest layer of ResNet-18: rate in TB/s of the bytes that must move."""
    rows, row_len = bench.size(512, 16), bench.size(4608, 40)
    topology = random_topology(bench, (rows, row_len), 0.05)
    values, dense = bench.random(topology.nnz, seed=1), bench.random(rows, row_len, seed=2)
    if name == "unpack":
        out, expected = ops.unpack(values, topology), topology.unpack(values)
        moved = 4 * dense.numel() + 8 * topology.nnz
    else:
        out, expected = ops.gather(dense, topology), topology.pack(dense)
        moved = 12 * topology.nnz
    error = checked(relative_error(out, expected), 0.0, name)
    with torch.no_grad():
        call = (lambda: ops.unpack(values, topology)) if name == "unpack" else (lambda: ops.gather(dense, topology))
        timing = bench.time(call, flush=True)
    return Measured({name: timing}, error, rate=moved / timing.median / 1e9, unit="TB/s")
