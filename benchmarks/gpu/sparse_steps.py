"""Training steps of the sparse ResNet-18: seconds and peak memory of what users run."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from fedsparse import ops
from fedsparse.nn import sparse_layers, sparsify

from .bench import Bench, checked, relative_error
from .rows import Case, Measured
from .steps import label as dense_label
from .training import (
    STEP_LIMITS,
    TrainingStep,
    apply_masks,
    batch_of,
    captured,
    mean_loss,
    network,
    random_masks,
)

# (batch, precision, density, how, V, back end): "chosen" takes for every pass the faster one, measured before
_PLAN = [
    *[(64, "tf32", 0.05, how, 1, "dense") for how in ("eager", "graph")],
    *[(64, "bf16", 0.1, "graph", 32, backend) for backend in ("dense", "triton", "chosen")],
    (64, "bf16", 0.05, "graph", 32, "chosen"),
    (64, "bf16", 0.05, "graph", 1, "chosen"),
    (64, "fp32", 0.05, "eager", 1, "dense"),
    *[(64, "tf32", density, "eager", 1, "dense") for density in (0.2, 0.1, 0.01)],
    (256, "bf16", 0.1, "graph", 32, "chosen"),
    (256, "tf32", 0.05, "eager", 1, "dense"),
]


def cases() -> list[Case]:
    """Each batch size, precision and density, eager and captured; values are float32."""
    return [
        Case(
            f"sparse step b{batch} {precision} density {density:.0%} V={granularity} {backend} {how}",
            partial(
                sparse_step,
                batch=batch,
                precision=precision,
                density=density,
                how=how,
                granularity=granularity,
                backend=backend,
            ),
            versus=dense_label(batch, precision, "masked eager", "NCHW"),
            seconds=4.0,
        )
        for batch, precision, density, how, granularity, backend in _PLAN
    ]


def sparse_step(
    bench: Bench, batch: int, precision: str, density: float, how: str, granularity: int, backend: str
) -> Measured:
    """Milliseconds of one step; the first change of the values is checked against a masked float64 step."""
    if how == "graph":
        bench.need_cuda("a CUDA graph")
    model = network(bench)
    # A thin network at a low density has layers without any weight, and then no gradient to check.
    masks = random_masks(model, max(density, 0.2) if bench.smoke else density)
    masks = {name: of_vectors(mask, granularity) for name, mask in masks.items()}
    apply_masks(model, masks).to(bench.device)
    images, labels = batch_of(bench, bench.size(batch, 16))
    expected = _expected_gradient(bench, model, images, labels, masks)
    bench.clear()
    layers = {name.removesuffix(".weight"): mask for name, mask in masks.items()}
    on_device = {name: mask.to(bench.device) for name, mask in layers.items()}
    step = TrainingStep(bench, sparsify(model, masks=on_device, granularity=granularity), images, labels, precision)
    with _on(backend):
        step()
    with nullcontext() if backend == "chosen" else ops.use_backend(backend):
        step.restore()
        step()
        error = relative_error(_gradient(step), expected)
        checked(error, STEP_LIMITS[precision], "the gradient of the values")
        step.restore()
        run, peak = captured(bench, [step]) if how == "graph" else (step, bench.peak(step))
        timing = bench.time(run, seconds=1.0)
    return Measured({"step": timing}, error, peak, 1e3 * images.shape[0] / timing.median, "images/s")


@contextmanager
def _on(backend: str) -> Iterator[None]:
    """What the first step runs on: for "chosen" every pass is timed, and the times kept for this process alone."""
    if backend != "chosen":
        with ops.use_backend(backend):
            yield
        return
    with tempfile.TemporaryDirectory() as folder, ops.measuring():
        os.environ["FEDSPARSE_CACHE"] = folder
        yield


def of_vectors(mask: torch.Tensor, granularity: int) -> torch.Tensor:
    """The mask with every V-th row taken for V of them."""
    return mask if granularity == 1 else mask[::granularity].repeat_interleave(granularity, 0)


def _expected_gradient(
    bench: Bench, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, masks: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Dense float64 gradients at the active weights of every convolution, in order, on the host."""
    wide = copy.deepcopy(model).double()
    with bench.reference():
        mean_loss(wide(images.double()), labels).backward()
    gradients = [(wide.get_parameter(name).grad, mask) for name, mask in masks.items()]
    return torch.cat([grad.cpu()[mask] for grad, mask in gradients if grad is not None])


def _gradient(step: TrainingStep) -> torch.Tensor:
    gradients = [layer.values.grad for layer in sparse_layers(step.model).values()]
    return torch.cat([gradient.cpu() for gradient in gradients if gradient is not None])
