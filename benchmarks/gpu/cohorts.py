"""Clients' steps of ResNet-18 at once by `fedsparse.nn.Cohort`: dense and sparse, client steps a second."""

from __future__ import annotations

from functools import partial

import torch

from fedsparse import ops
from fedsparse.nn import Cohort, sparsify

from .bench import Bench, checked, relative_error
from .clients import BATCH
from .clients import label as in_turn_label
from .rows import Case, Measured
from .training import (
    LEARNING_RATE,
    MOMENTUM,
    STEP_LIMITS,
    WEIGHT_DECAY,
    apply_masks,
    batch_of,
    mean_loss,
    network,
    random_masks,
)

# (clients, precision, density, granularity, back end), most important first; density 1 is dense
_PLAN = [
    *[(count, "bf16", 0.1, 32, "triton") for count in (10, 16, 4, 1)],
    *[(count, "bf16", 1.0, 1, "dense") for count in (10, 16)],
    (10, "bf16", 0.05, 1, "triton"),
    (10, "bf16", 0.05, 1, "dense"),
    (10, "tf32", 0.1, 32, "triton"),
]


def cases() -> list[Case]:
    """Compared with as many dense steps, eager and one after the other."""
    return [
        Case(
            f"cohort {count} x b{BATCH} {precision} density {density:.0%} V={granularity} {backend}",
            partial(
                cohort_step,
                clients=count,
                precision=precision,
                density=density,
                granularity=granularity,
                backend=backend,
            ),
            versus=in_turn_label(count, precision, "in turn eager", "NCHW" if precision == "tf32" else "channels_last"),
            seconds=6.0,
        )
        for count, precision, density, granularity, backend in _PLAN
    ]


def cohort_step(bench: Bench, clients: int, precision: str, density: float, granularity: int, backend: str) -> Measured:
    """Milliseconds for one step of every client; the last client's first step is checked against one alone."""
    if backend == "triton":
        bench.need_cuda("Triton")
    clients = bench.size(clients, min(clients, 2))
    model = _network(bench, density, bench.size(granularity, 1))
    data = [batch_of(bench, bench.size(BATCH, 16), seed=client) for client in range(clients)]
    name = list(dict(model.named_parameters()))[-2]  # the classifier's weight

    def change(of: Cohort) -> torch.Tensor:
        return of.parameters[name].detach()[-1].double() - model.get_parameter(name).detach().double()

    with bench.precision("fp32"), ops.use_backend("dense"):
        alone = Cohort(model, 1, _optimizer, mean_loss)
        alone.step(data[-1:])
    with bench.precision(precision), ops.use_backend(backend):
        cohort = Cohort(model, clients, _optimizer, mean_loss)

        def step() -> None:
            with bench.autocast(precision):
                cohort.step(data)

        step()
        error = checked(relative_error(change(cohort), change(alone)), STEP_LIMITS[precision], "the last client")
        del alone
        bench.clear()
        peak = bench.peak(step)
        timing = bench.time(step, seconds=1.0)
    return Measured({"all steps": timing}, error, peak, 1e3 * clients / timing.median, "client steps/s")


def _optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    fused = True if parameters[0].is_cuda else None
    return torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused)


def _network(bench: Bench, density: float, granularity: int) -> torch.nn.Module:
    model = network(bench)
    if density == 1:
        return model.to(bench.device)
    masks = {}
    for name, mask in random_masks(model, max(density, 0.2) if bench.smoke else density).items():
        divides = granularity if mask.shape[0] % granularity == 0 else 1
        masks[name.removesuffix(".weight")] = mask[::divides].repeat_interleave(divides, 0)
    apply_masks(model, {f"{name}.weight": mask for name, mask in masks.items()}).to(bench.device)
    return sparsify(model, masks={name: mask.to(bench.device) for name, mask in masks.items()}, granularity=granularity)
