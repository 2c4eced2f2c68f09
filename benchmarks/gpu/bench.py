"""The device of a run: precision modes, timing, peak memory, and checks against a reference."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import NotMeasurableError, Timing

PRECISIONS = ("fp32", "tf32", "bf16")
_FLUSH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure.

    Attributes:
        device: torch device, "cuda" or "cpu".
        smoke: tiny sizes and few repeats; its numbers mean nothing.
        seconds: time spent on the repeats of one call.
    """

    device: str = "cuda"
    smoke: bool = False
    seconds: float = 0.4

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def size(self, full: int, smoke: int) -> int:
        """The one of two sizes that this run uses."""
        return smoke if self.smoke else full

    def need_cuda(self, what: str) -> None:
        """Raise NotMeasurableError on a device that is no GPU."""
        if not self.cuda:
            raise NotMeasurableError(f"{what} needs a CUDA device")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def random(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal values made on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def time(self, call: Callable[[], object], flush: bool = False, seconds: float | None = None) -> Timing:
        """Median time of a call after warm-up.

        Args:
            call: what is timed; nothing in it may wait for the device.
            flush: overwrite the cache before each repeat, outside the timed region. That also keeps the device busy
                while the host launches, so that short kernels are timed without launch gaps.
            seconds: budget of the repeats, `self.seconds` by default.
        """
        scratch = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=self.device) if flush and self.cuda else None
        for _ in range(1 if self.smoke else 3):
            call()
        first = max(self._once(call, scratch), 1e-3)
        wanted = 1e3 * (self.seconds if seconds is None else seconds)
        cost = first + (0.3 if scratch is not None else 0.0)
        repeats = 2 if self.smoke else max(10, min(300, math.ceil(wanted / cost)))
        return _summary(self._repeat(call, scratch, repeats))

    def _once(self, call: Callable[[], object], scratch: Tensor | None) -> float:
        return self._repeat(call, scratch, 1)[0]

    def _repeat(self, call: Callable[[], object], scratch: Tensor | None, repeats: int) -> list[float]:
        if not self.cuda:
            return [_host_milliseconds(call) for _ in range(repeats)]
        pairs = []
        for _ in range(repeats):
            if scratch is not None:
                scratch.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def clear(self) -> None:
        """Give unused memory back, so that the next peak is its own."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self, call: Callable[[], object]) -> int | None:
        """Largest number of bytes that tensors held during one call, those alive before it included."""
        if not self.cuda:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    @contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Float32 products inside are strict for "fp32", else their inputs may be rounded to TF32."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    @contextmanager
    def reference(self) -> Iterator[None]:
        """For float64 references: strict, and without trying out cuDNN's algorithms, which takes long in float64."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            with self.precision("fp32"):
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    def autocast(self, name: str) -> torch.autocast:
        """For the forward of a network: bfloat16 where `name` says so."""
        return torch.autocast(self.device, torch.bfloat16, enabled=name == "bf16")


def _host_milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _summary(times: list[float]) -> Timing:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference| in float64; NaN if `out` holds one."""
    wide = reference.double()
    return ((out.double() - wide).norm() / wide.norm()).item()


def checked(error: float, limit: float, what: str) -> float:
    """Return `error`, or raise ValueError where it is above the limit or not a number."""
    if not error <= limit:
        raise ValueError(f"wrong result, so not timed: {what} is off by {error:.1e}, the limit is {limit:.0e}")
    return error
