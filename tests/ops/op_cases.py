"""Shapes for the op tests, each with its reason, and what every test does with them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsparse import ops
from fedsparse.federated.meter import _cpu_meter
from fedsparse.topology import Topology

DTYPES = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Conv:
    """A convolution: rows N, channels C, batch B, map H x W, and its geometry."""

    N: int = 5
    C: int = 3
    B: int = 3
    H: int = 9
    W: int = 11
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    density: float | str = 0.3
    granularity: int = 1

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


CONVS = {
    "primes": Conv(),
    "one image": Conv(B=1),
    "one full block": Conv(B=16, density=0.5),
    "one image in the last block": Conv(B=17),
    "four blocks": Conv(B=64, H=4, W=4),
    "more rows than columns of the map": Conv(H=13, W=2),
    "map of one pixel": Conv(H=1, W=1),
    "map of 4 x 4": Conv(H=4, W=4, N=9),
    "map of 8 x 8": Conv(H=8, W=8, C=6),
    "map of 7 x 7": Conv(H=7, W=7, C=6),
    "map of 14 x 14": Conv(H=14, W=14),
    "map of 16 x 16": Conv(H=16, W=16),
    "width with every remainder": Conv(H=3, W=31),
    "pointwise": Conv(kernel=(1, 1), padding=(0, 0)),
    "pointwise, stride 2": Conv(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "pointwise, padded": Conv(kernel=(1, 1), padding=(2, 1)),
    "stride 2": Conv(stride=(2, 2)),
    "stride 2, even map": Conv(stride=(2, 2), H=8, W=8, B=17),
    "stride 3": Conv(stride=(3, 3)),
    "stride beyond the kernel": Conv(kernel=(2, 2), stride=(4, 3), padding=(0, 0)),
    "last pixels unread": Conv(stride=(3, 3), padding=(0, 0), H=10, W=10),
    "stride larger than the map": Conv(stride=(5, 5), H=2, W=3),
    "kernel 5": Conv(kernel=(5, 5), padding=(2, 2)),
    "kernel 7, stride 2": Conv(kernel=(7, 7), padding=(3, 3), stride=(2, 2), H=15, W=16),
    "no padding": Conv(padding=(0, 0)),
    "padding beyond the kernel": Conv(padding=(4, 3)),
    "dilation 2": Conv(dilation=(2, 2), padding=(2, 2)),
    "dilation and stride": Conv(dilation=(2, 3), padding=(2, 3), stride=(2, 2)),
    "rectangular kernel": Conv(kernel=(1, 5), padding=(0, 2)),
    "rectangular everything": Conv(kernel=(3, 2), padding=(2, 0), stride=(1, 2), dilation=(1, 3)),
    "dense": Conv(density=1.0),
    "half": Conv(density=0.5),
    "one percent": Conv(N=32, C=16, density=0.01),
    "nothing active": Conv(density=0.0),
    "one active weight": Conv(density="one"),
    "empty rows and columns": Conv(N=8, C=6, density="gaps"),
    "two blocks of channels": Conv(C=40, H=4, W=4, density=0.9),
    "two blocks of channels, stride 2": Conv(C=50, N=50, H=8, W=8, stride=(2, 2), density=0.9),
    "first block of channels empty": Conv(C=60, H=5, W=5, density="late"),
    "more active weights than sums fit": Conv(N=16, C=40, H=5, W=4, density=1.0),
    "strips of 4": Conv(N=12, granularity=4),
    "strips of 8, one image in the last block": Conv(N=24, B=17, H=8, W=8, granularity=8),
    "strips of 16, width with every remainder": Conv(N=32, H=3, W=31, granularity=16),
    "strips of 32, several rectangles": Conv(N=64, C=6, H=12, W=9, granularity=32),
    "strips of 64 as pairs of 32": Conv(N=64, granularity=64),
    "strips, several runs of entries": Conv(N=32, C=80, H=4, W=4, density=0.5, granularity=32),
    "strips, odd entries": Conv(N=8, C=1, kernel=(1, 5), padding=(0, 2), density=1.0, granularity=8),
    "strips, stride 2": Conv(N=16, C=6, stride=(2, 2), H=8, W=8, granularity=16),
    "strips, kernel 7, stride 2": Conv(N=16, kernel=(7, 7), padding=(3, 3), stride=(2, 2), H=15, granularity=8),
    "strips, dilation and stride": Conv(N=8, dilation=(2, 3), padding=(2, 3), stride=(2, 2), granularity=4),
    "strips, pointwise": Conv(N=16, C=20, kernel=(1, 1), padding=(0, 0), granularity=16),
    "strips, one percent": Conv(N=64, C=16, density=0.01, granularity=16),
    "strips, one active column": Conv(N=16, density="one", granularity=8),
    "strips, empty rows and columns": Conv(N=32, C=6, density="gaps", granularity=8),
    "strips both ways": Conv(N=16, C=8, stride=(2, 2), density=1.0),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer: rows N, columns C, batch B."""

    N: int = 7
    C: int = 11
    B: int = 3
    density: float | str = 0.3
    granularity: int = 1


LINEARS = {
    "primes": Linear(),
    "one sample": Linear(B=1),
    "one full block": Linear(B=16),
    "one sample in the last block": Linear(B=17),
    "four blocks": Linear(B=64, N=33, C=65),
    "two chunks of blocks": Linear(B=300),
    "one row": Linear(N=1),
    "one column": Linear(C=1),
    "long rows": Linear(C=513, density=0.5),
    "several blocks of columns": Linear(B=64, C=1030, density=0.5),
    "dense": Linear(density=1.0),
    "one percent": Linear(N=64, C=64, density=0.01),
    "nothing active": Linear(density=0.0),
    "one active weight": Linear(density="one"),
    "empty rows and columns": Linear(density="gaps"),
    "strips of 4": Linear(N=12, granularity=4),
    "strips of 16, one sample in the last block": Linear(N=32, C=33, B=17, granularity=16),
    "strips of 32, two chunks of blocks": Linear(N=64, C=300, B=300, density=0.5, granularity=32),
    "strips, one active column": Linear(N=16, density="one", granularity=8),
    "strips both ways": Linear(N=16, C=32, B=20, density=1.0),
}


def random_mask(shape: tuple[int, ...], density: float | str, seed: int = 0, granularity: int = 1) -> Tensor:
    """A mask of that density; "one" has one true entry, "gaps" leaves odd rows and columns empty, "late" the first half.

    With a granularity, all this is said of groups of so many rows.
    """
    if granularity > 1:
        groups = random_mask((shape[0] // granularity, *shape[1:]), density, seed)
        return groups.repeat_interleave(granularity, 0)
    generator = torch.Generator().manual_seed(seed)
    if density == "one":
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[mask.numel() // 2] = True
        return mask
    mask = torch.rand(shape, generator=generator) < (density if isinstance(density, float) else 0.5)
    if density == "late":
        mask[:, : shape[1] // 2] = False
    if density == "gaps":
        mask[1::2] = False
        mask[:, 1::2] = False
    return mask


def conv_operands(case: Conv, dtype: torch.dtype) -> tuple[Topology, Tensor, Tensor, Tensor]:
    """(topology, values, x, bias)."""
    generator = torch.Generator().manual_seed(1)
    topology = Topology.from_mask(
        random_mask((case.N, case.C, *case.kernel), case.density, 0, case.granularity), case.granularity
    )
    shapes = ((topology.nnz,), (case.B, case.C, case.H, case.W), (case.N,))
    return topology, *(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def linear_operands(case: Linear, dtype: torch.dtype) -> tuple[Topology, Tensor, Tensor, Tensor]:
    """(topology, values, x, bias)."""
    generator = torch.Generator().manual_seed(1)
    topology = Topology.from_mask(random_mask((case.N, case.C), case.density, 0, case.granularity), case.granularity)
    shapes = ((topology.nnz,), (case.B, case.C), (case.N,))
    return topology, *(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def output_and_gradients(apply, *operands: Tensor) -> list[Tensor]:
    """[y, one gradient for each operand] under a fixed gradient of y."""
    operands = [x.detach().requires_grad_() for x in operands]
    y = apply(*operands)
    gy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().to(y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, operands, gy)]


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    """Every tensor within the rounding of its dtype of the float64 one, relative to the largest entry."""
    for name, a, b in zip(("y", "values", "x", "bias"), found, expected):
        assert a.shape == b.shape, name
        assert bool(a.isfinite().all()), name
        if a.numel():
            relative = 2e-6 if a.dtype == torch.float32 else 1e-14
            assert float((a.double() - b).abs().max()) <= relative * max(1.0, float(b.abs().max())), name


def isas() -> list[str]:
    """The instruction sets that this machine runs."""
    return torch.ops.fedsparse.isas().split(", ") if ops.compiled()["cpu_library"] else []


def tile_kinds() -> list[str]:
    """The matrix tiles that this machine runs."""
    return torch.ops.fedsparse.tile_kinds().split(", ")[:-1] if ops.compiled()["cpu_library"] else []


def peak_beyond(run: Callable[[], object]) -> int:
    """Bytes of CPU tensors that were alive at once while `run` ran, beyond those before; kernels' scratch included."""
    meter = _cpu_meter()
    meter.fedsparse_meter_reset()
    before = meter.fedsparse_meter_live()
    run()
    return meter.fedsparse_meter_peak() - before


class OpLog(TorchDispatchMode):
    """Names of the ops that ran inside, without their namespace, and the largest tensor that they made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func._schema.name.partition("::")[2])
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def parametrize(cases: dict):
    """pytest parameters, named by their reasons."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=reason) for reason, case in cases.items()])
