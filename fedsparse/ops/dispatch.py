"""Which of the sparse kernels and dense torch runs a pass on the CPU, by measurement.

A pass is one of the three products of a family (`algebra`): of "conv2d", "blocked_conv2d" (which would leave and
enter the blocked layout for dense torch) or "linear". Where no back end is forced, `run` takes

1. what `measuring` found for this very pass on this machine: both were timed on the user's own operands, and the times
   kept in a file (`FEDSPARSE_CACHE`, else `XDG_CACHE_HOME`, else ~/.cache; one file a machine, version, instruction
   set and number of threads);
2. else the shipped crossover of the pass's kind: the density up to which the sparse kernel was at least as fast as the
   best dense torch in `python -m benchmarks.crossovers`, on the machine that `crossovers.json` names.

Nothing is measured outside `measuring`, so that a run chooses alike in every process that shares the file, and its bits
do not depend on how busy the machine was. Lanes without an image cost as much as others: a batch that fills half of its
lanes counts as twice as dense.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsparse.ops.algebra import Geometry, Products
from fedsparse.ops.blocked import LANES
from fedsparse.ops.index import Index

CROSSOVERS = Path(__file__).with_name("crossovers.json")
_measuring = False
_times: dict[Path, dict[str, dict[str, float]]] = {}


class Pass(NamedTuple):
    """One pass over one layer.

    family: "conv2d", "blocked_conv2d" or "linear". product: "product", "transposed" or "sampled". weight: (N, C, kh,
    kw), of a linear layer (N, C, 1, 1). size: (H, W) of the input. batch: images or rows. nnz: active weights. strip: V
    where V rows at a time share their columns, else 1.
    """

    family: str
    product: str
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    size: tuple[int, int]
    batch: int
    dtype: torch.dtype
    nnz: int
    strip: int

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
        shape, stride, size = ("x".join(map(str, part)) for part in (self.weight, self.stride, self.size))
        what = f"{self.family} {self.product} {shape} stride {stride} on {size}"
        return f"{what} batch {self.batch} {name} 2^{bucket} strip {self.strip}"


class Choice(NamedTuple):
    """What runs a pass ("cpu" or "dense") and why: measured milliseconds by name, or the shipped crossover."""

    name: str
    times: Mapping[str, float]
    crossover: float

    def __str__(self) -> str:
        if self.times:
            measured = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.times.items())
            return f"{self.name} ({measured})"
        return f"{self.name} (shipped crossover {self.crossover:.0%})"


def choose(work: Pass) -> Choice:
    """The faster of "cpu" and "dense" for the pass."""
    return _choose(work, _file(), torch.ops.fedsparse.isa())


@lru_cache(4096)
def _choose(work: Pass, file: Path, isa: str) -> Choice:
    times = _read(file).get(work.key, {})
    limit = crossover(work)
    if times:
        return Choice(min(times, key=lambda name: times[name]), times, limit)
    lanes = LANES[work.dtype]
    filled = work.batch / (-(-work.batch // lanes) * lanes) if work.batch else 1.0
    return Choice("cpu" if work.density <= limit * filled else "dense", {}, limit)


def crossover(work: Pass) -> float:
    """Shipped density up to which sparse kernels win for passes of this kind; 0 to 1."""
    table = _crossovers()
    by_isa = table.get(torch.ops.fedsparse.isa(), table["avx2"])
    return by_isa[f"{work.family} {work.product}"][work.kind]["strips" if work.strip > 1 else "single"]


def run(work: Pass, candidates: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """The result of the chosen candidate; within `measuring` both are timed first."""
    if _measuring:
        times = {name: milliseconds(candidate) for name, candidate in candidates.items()}
        _keep(_file(), work.key, times)
    return candidates[choose(work).name]()


def products(family: str, sparse: Products, dense: Products, batch: int | None = None) -> Products:
    """The three products of a family, each on whichever of its two back ends `run` chooses.

    batch: images of the operands, where that is not the size of their first dimension.
    """

    def work(product: str, index: Index, operand: Tensor, geometry: Geometry) -> Pass:
        kernel, stride = geometry[:2] if geometry else ((1, 1), (1, 1))
        size = (operand.shape[2], operand.shape[3]) if operand.dim() > 2 else (1, 1)
        images = operand.shape[0] if batch is None else batch
        return pass_of(family, product, index, kernel, stride, size, images, operand.dtype)

    def product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        both = {
            "cpu": lambda: sparse.product(values, index, x, bias, geometry),
            "dense": lambda: dense.product(values, index, x, bias, geometry),
        }
        return run(work("product", index, x, geometry), both)

    def transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
        both = {
            "cpu": lambda: sparse.transposed(values, index, gy, geometry),
            "dense": lambda: dense.transposed(values, index, gy, geometry),
        }
        what = work("transposed", index, gy, geometry)
        return run(what._replace(size=geometry[4]) if geometry else what, both)

    def sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        both = {
            "cpu": lambda: sparse.sampled(index, gy, x, geometry),
            "dense": lambda: dense.sampled(index, gy, x, geometry),
        }
        return run(work("sampled", index, x, geometry), both)

    return Products(product, transposed, sampled)


def pass_of(
    family: str,
    product: str,
    index: Index,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
) -> Pass:
    """The pass over a layer with these index arrays."""
    strip = torch.ops.fedsparse.strip_rows(index.indptr, index.cols)
    weight = (index.rows, index.channels, *kernel)
    return Pass(family, product, weight, stride, size, batch, dtype, index.cols.shape[0], strip)


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


@cache
def _crossovers() -> dict[str, Any]:
    return json.loads(CROSSOVERS.read_text())["crossovers"]


@cache
def processor() -> str:
    """The processor's name, as the system has it."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", facts.read_text()) if facts.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _file() -> Path:
    given = os.environ.get("FEDSPARSE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given) if given else Path(home) / "fedsparse"
    machine = re.sub(r"\W+", "-", processor())
    return folder / f"{machine}-{_version()}-{torch.ops.fedsparse.isa()}-{torch.get_num_threads()}-threads.json"


@cache
def _version() -> str:
    return f"{metadata.version('fedsparse')}-torch-{torch.__version__}"


def _read(path: Path) -> dict[str, dict[str, float]]:
    """The measured times, read once a process; a file that is not ours counts as none."""
    if path not in _times:
        try:
            _times[path] = json.loads(path.read_text())
        except FileNotFoundError:
            _times[path] = {}
        except ValueError as error:
            raise ValueError(f"{path} does not hold measured times ({error}); delete it.") from error
    return _times[path]


def _keep(path: Path, key: str, times: dict[str, float]) -> None:
    known = _read(path)
    _choose.cache_clear()
    known[key] = {name: round(ms, 4) for name, ms in times.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(known, indent=0, sort_keys=True))
    fresh.replace(path)
