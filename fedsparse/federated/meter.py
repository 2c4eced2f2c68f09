"""What a client's work costs, measured: peak bytes of live tensors, and multiply-adds of a forward pass."""

from __future__ import annotations

import ctypes
import math
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.nn import SparseConv2d, SparseLayer
from fedsparse.nn.walk import Tensors


class Peak:
    """Peak memory of a worker: the model it holds plus the most that was alive beside it.

    On the CPU every tensor that torch's allocator hands out is counted to the byte, kernels' scratch included; on CUDA
    `torch.cuda.max_memory_allocated` is read. `bytes` is the highest figure since the last `reset`.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def reset(self) -> None:
        """Forget the highest figure."""
        self.bytes = 0

    def measure(self, model: nn.Module | Tensors) -> Measuring:
        """A context: count what is alive in it beyond what was at its start, plus the model's own tensors."""
        tensors = Tensors.of(model)
        return Measuring(self, tensors.nbytes, Counter(tensors.parameters[0].device))


class Measuring:
    """What `Peak.measure` gives; what ends in an exception is not counted."""

    def __init__(self, peak: Peak, held: int, counter: Counter) -> None:
        self._peak, self._held, self._counter = peak, held, counter

    def __enter__(self) -> None:
        self._counter.reset()
        self._before = self._counter.live()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._peak.bytes = max(self._peak.bytes, self._held + self._counter.peak() - self._before)


class Counter:
    """Bytes of tensors on a device, as its allocator counts them, and the time when all work on it is done.

    On CUDA torch's own figures, on the CPU those of `live_bytes`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def live(self) -> int:
        """Bytes alive."""
        return torch.cuda.memory_allocated(self.device) if self.cuda else live_bytes()

    def peak(self) -> int:
        """The most that were alive since `reset`."""
        return torch.cuda.max_memory_allocated(self.device) if self.cuda else peak_bytes()

    def reset(self) -> None:
        """Set `peak` to what is alive."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak()

    def now(self) -> float:
        """Seconds, as `time.perf_counter`, once the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def live_bytes() -> int:
    """Bytes of the CPU tensors alive now, of those made since the first call of a function of this kind."""
    return int(_cpu_meter().fedsparse_meter_live())


def peak_bytes() -> int:
    """The most that `live_bytes` was since `reset_peak`."""
    return int(_cpu_meter().fedsparse_meter_peak())


def largest_bytes() -> int:
    """The size of the largest CPU tensor made since `reset_largest`, kernels' scratch included."""
    return int(_cpu_meter().fedsparse_meter_largest())


def reset_largest() -> None:
    """Set `largest_bytes` to 0."""
    _cpu_meter().fedsparse_meter_reset_largest()


def reset_peak() -> None:
    """Set `peak_bytes` to what is alive now."""
    _cpu_meter().fedsparse_meter_reset()


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, index arrays included."""
    return Tensors.of(model).nbytes


@torch.no_grad()
def multiply_adds(model: nn.Module, input_shape: tuple[int, ...], input_dtype: torch.dtype = torch.float32) -> int:
    """Multiply-adds of the convolutions and linear layers in a forward pass of one sample, (C, H, W) or (tokens,).

    Counted at the layers while they run: a sparse layer does one per active weight and output position. An integer
    `input_dtype` is that of tokens; floating-point samples are given in the model's dtype. Products without weights,
    as between queries and keys, are not counted: no mask changes them.
    """
    count = 0

    def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        if isinstance(module, SparseLayer):
            weights = module.topology.nnz
        else:
            weights = module.get_parameter("weight").numel()
        convolution = isinstance(module, nn.Conv2d | SparseConv2d)
        positions = math.prod(output.shape[2:] if convolution else output.shape[1:-1])
        count += weights * positions

    handles = [
        m.register_forward_hook(hook) for m in model.modules() if isinstance(m, SparseLayer | nn.Conv2d | nn.Linear)
    ]
    training = model.training
    parameter = next(model.parameters())
    dtype = parameter.dtype if input_dtype.is_floating_point else input_dtype
    model.eval()(torch.zeros(1, *input_shape, dtype=dtype, device=parameter.device))
    model.train(training)
    for handle in handles:
        handle.remove()
    return count


@cache
def _cpu_meter() -> Any:
    path = Path(__file__).parent.parent / "_meter.so"
    if not path.exists():
        raise RuntimeError(f"the memory meter {path.name} is not built: install fedsparse with `pip install .`")
    library = ctypes.CDLL(str(path))
    for name in ("fedsparse_meter_live", "fedsparse_meter_peak", "fedsparse_meter_largest"):
        getattr(library, name).restype = ctypes.c_int64
    library.fedsparse_meter_install()
    return library
