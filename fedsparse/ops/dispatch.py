"""Which of the sparse kernels and dense torch runs a pass, by measurement.

A pass is one of the three products of a family (`algebra`): of "conv2d", "blocked_conv2d" (which would leave and
enter the blocked layout for dense torch) or "linear". Where no back end is forced, `run` takes

1. what `measuring` found for this very pass on this machine: both were timed on the user's own operands, and the times
   kept in a file (`FEDSPARSE_CACHE`, else `XDG_CACHE_HOME`, else ~/.cache; one file a machine, version, instruction
   set and number of threads);
2. else the shipped crossover of the pass's kind: the density up to which the sparse kernel was at least as fast as the
   best dense torch in `python -m benchmarks.crossovers`, on the machine that `crossovers.json` names.

Nothing is measured outside `measuring`, and the file is read once a process, so that processes started on the same file
choose alike and bits do not depend on how busy the machine was; after a `measuring` they may differ from those before.
No crossovers are shipped for bfloat16 on matrix tiles (`amx`), which nobody has measured: dense runs until measured.
Lanes without an image cost as much as others: a batch that fills half of its lanes counts as twice as dense.

On a GPU there are the Triton kernels, for single weights in two ways, and dense torch. No crossovers are shipped for
GPUs: dense torch runs what was not measured. Clients of a cohort run one after the other unless `use_backend("triton")`
is in force.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.algebra import Geometry, Products
from fedsparse.ops.blocked import LANES
from fedsparse.ops.index import Index
from fedsparse.ops.times import file_of_times, keep, known, places

CROSSOVERS = Path(__file__).with_name("crossovers.json")
_measuring = False
_measured = 0  # passes timed by this process
_dense_allowed = True


class Pass(NamedTuple):
    """One pass over one layer.

    family: "conv2d", "blocked_conv2d" or "linear". product: "product", "transposed" or "sampled". weight: (N, C, kh,
    kw), of a linear layer (N, C, 1, 1). size: (H, W) of the input. batch: images or rows. nnz: active weights. strip: V
    where V rows at a time share their columns, else 1. gpu: the name of the GPU, empty for the CPU.
    """

    family: str
    product: str
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]
    batch: int
    dtype: torch.dtype
    nnz: int
    strip: int
    gpu: str = ""

    @property
    def density(self) -> float:
        """Active weights over all."""
        return self.nnz / max(1, math.prod(self.weight))

    @property
    def kind(self) -> str:
        """What crossovers are told apart by."""
        if self.family == "linear":
            return "linear"
        _, channels, high, wide = self.weight
        window = "1x1" if high * wide == 1 else "kxk"
        return f"{'few ' if channels < 16 else ''}{window}{' strided' if max(self.stride) > 1 else ''}"

    @property
    def key(self) -> str:
        """All that a measured time depends on; densities within a factor of 2^(1/4) share one."""
        bucket = round(4 * math.log2(self.density)) / 4 if self.nnz else "-inf"
        name = str(self.dtype).removeprefix("torch.")
        where = (self.weight, self.stride, self.padding, self.dilation, self.size)
        shape, stride, padding, dilation, size = ("x".join(map(str, part)) for part in where)
        what = f"{self.family} {self.product} {shape} stride {stride} padding {padding} dilation {dilation} on {size}"
        rounded = " tf32" if self.gpu and self.dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else ""
        return f"{what} batch {self.batch} {name}{rounded} 2^{bucket} strip {self.strip}"


class Choice(NamedTuple):
    """What runs a pass, by the name of a back end, and why: measured milliseconds, the shipped crossover, or `told`.

    crossover: None on a GPU, for which none is shipped.
    """

    name: str
    times: Mapping[str, float]
    crossover: float | None
    told: bool = False

    def __str__(self) -> str:
        if self.told:
            return f"{self.name} (dense passes are not allowed)"
        if self.times:
            measured = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.times.items())
            return f"{self.name} ({measured})"
        if self.crossover is None:
            return f"{self.name} (not measured)"
        return f"{self.name} (shipped crossover {self.crossover:.0%})"


def choose(work: Pass) -> Choice:
    """The fastest of the sparse kernels ("cpu"; on a GPU "triton", "condensed") and "dense", where that is allowed."""
    if work.gpu:
        return _choose_on_gpu(work, file_of_times(work.gpu), _dense_allowed)
    if not _dense_allowed:
        return Choice("cpu", {}, crossover(work), told=True)
    return _choose(work, file_of_times(), torch.ops.fedsparse.isa())


@lru_cache(4096)
def _choose(work: Pass, file: Path | None, isa: str) -> Choice:
    times = known(file).get(work.key, {})
    if work.dtype == torch.bfloat16:
        return Choice(min(times, key=lambda name: times[name]) if times else "dense", times, None)
    limit = crossover(work)
    if times:
        return Choice(min(times, key=lambda name: times[name]), times, limit)
    lanes = LANES[work.dtype]
    filled = work.batch / (-(-work.batch // lanes) * lanes) if work.batch else 1.0
    return Choice("cpu" if work.density <= limit * filled else "dense", {}, limit)


def _choose_on_gpu(work: Pass, file: Path | None, dense_allowed: bool) -> Choice:
    all_times = known(file)
    times = all_times.get(work.key, {}) if all_times else {}
    if not dense_allowed:
        sparse = {name: ms for name, ms in times.items() if name != "dense"}
        return Choice(min(sparse, key=lambda name: sparse[name]) if sparse else "triton", {}, None, told=True)
    return Choice(min(times, key=lambda name: times[name]) if times else "dense", times, None)


def crossover(work: Pass) -> float:
    """Shipped density up to which sparse kernels win for passes of this kind; 0 to 1."""
    table = _crossovers()
    by_isa = table.get(torch.ops.fedsparse.isa(), table["avx2"])
    return by_isa[f"{work.family} {work.product}"][work.kind]["strips" if work.strip > 1 else "single"]


def run(work: Pass, candidates: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """The result of the chosen candidate; within `measuring` both are timed first."""
    global _measured
    if _measuring:
        _measured += 1
        clock = gpu_milliseconds if work.gpu else milliseconds
        times = {name: clock(candidate) for name, candidate in candidates.items()}
        keep(file_of_times(work.gpu), work.key, times)
        _choose.cache_clear()
    return candidates[choose(work).name]()


def products(
    family: str, candidates: Mapping[str, Products], batch: int | None = None, granularity: int | None = None
) -> Products:
    """The three products of a family, each on whichever of its back ends `run` chooses.

    batch: images of the operands, where that is not the size of their first dimension. granularity: of the mask; None
    where it is to be found in the index arrays.
    """

    def work(product: str, index: Index, operand: Tensor, geometry: Geometry) -> Pass:
        size = (operand.shape[2], operand.shape[3]) if operand.dim() > 2 else (1, 1)
        images = operand.shape[0] if batch is None else batch
        return pass_of(family, product, index, geometry[:4] or LINEAR, size, images, operand.dtype, granularity)

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        all_ = {name: partial(each.product, values, index, x, bias, geometry) for name, each in candidates.items()}
        return run(work("product", index, x, geometry), all_)

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        all_ = {name: partial(each.transposed, values, index, gy, geometry) for name, each in candidates.items()}
        what = work("transposed", index, gy, geometry)
        return run(what._replace(size=geometry[4]) if geometry else what, all_)

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        all_ = {name: partial(each.sampled, index, gy, x, geometry) for name, each in candidates.items()}
        return run(work("sampled", index, x, geometry), all_)

    return Products(product, transposed, sampled)


LINEAR: Geometry = ((1, 1), (1, 1), (0, 0), (1, 1))
"""Kernel, stride, padding and dilation of a linear layer."""


def pass_of(
    family: str,
    product: str,
    index: Index,
    geometry: Geometry,
    size: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    granularity: int | None = None,
) -> Pass:
    """The pass over a layer with these index arrays; geometry as (kernel, stride, padding, dilation).

    granularity: of the mask; None, on the CPU, where it is to be found in the index arrays.
    """
    kernel, stride, padding, dilation = geometry
    strip = (
        torch.ops.fedsparse.strip_rows(index.indptr, index.cols, index.granularity)
        if granularity is None
        else granularity
    )
    gpu = _name_of(index.indptr.device) if index.indptr.is_cuda else ""
    weight = (index.rows, index.channels, *kernel)
    return Pass(family, product, weight, stride, padding, dilation, size, batch, dtype, index.nnz, strip, gpu)


@cache
def _name_of(gpu: torch.device) -> str:
    return torch.cuda.get_device_name(gpu)


def situation() -> tuple[Any, ...]:
    """What choices depend on beside the pass: equal while a choice stays as it is."""
    return (_dense_allowed, _measured, torch.get_num_threads(), torch.ops.fedsparse.isa(), places())


def is_measuring() -> bool:
    """Whether `measuring` is in force."""
    return _measuring


@contextmanager
def measuring() -> Iterator[None]:
    """Within the context every pass that runs is timed on its own operands, sparse and dense, and the times are kept.

    with fedsparse.ops.measuring():
        loss(model(images), labels).backward()
    """
    global _measuring
    before, _measuring = _measuring, True
    try:
        yield
    finally:
        _measuring = before


@contextmanager
def dense_passes(allowed: bool) -> Iterator[None]:
    """Within the context passes may run on dense torch where that is faster, or never do.

    A pass on dense torch unpacks its own layer's weight for its duration, or makes its gradient in that shape.
    """
    global _dense_allowed
    before, _dense_allowed = _dense_allowed, allowed
    try:
        yield
    finally:
        _dense_allowed = before


def milliseconds(call: Callable[[], Any], runs: int = 3) -> float:
    """Least time of a call after a warm-up: thread CPU time with one thread, else wall time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    times = []
    for _ in range(runs):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times) * 1e3


def gpu_milliseconds(call: Callable[[], Any], runs: int = 10) -> float:
    """Least time of a call on the current GPU after a warm-up."""
    call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in pairs)


@cache
def _crossovers() -> dict[str, Any]:
    return json.loads(CROSSOVERS.read_text())["crossovers"]
