"""Runs the Triton kernels of convolutions under Triton's interpreter; prints their relative errors as JSON.

Started by test_convolutions_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fedsparse.kernels import direct, strip_pack
from fedsparse.kernels.direct_sample import direct_sample
from fedsparse.kernels.strip_product import strip_product
from fedsparse.kernels.strip_sample import strip_sample
from fedsparse.kernels.strip_spread import strip_spread
from spmm_interpreted import poison_new_tensors, relative_error
from torch import Tensor

from fedsparse.ops.index import Index, single_columns, single_rows
from fedsparse.ops.strips import from_lanes, plan, to_lanes
from fedsparse.topology import Topology

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A convolution of `clients` clients with B images each; V = 1 for single weights."""

    N: int = 32
    C: int = 3
    B: int = 3
    H: int = 4
    W: int = 3
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    density: float = 0.3
    V: int = 16
    clients: int = 1

    @property
    def geometry(self) -> tuple[Pair, ...]:
        return (self.kernel, self.stride, self.padding, self.dilation)

    @property
    def size(self) -> Pair:
        high, wide = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((self.H, self.W), *self.geometry, strict=True)
        )
        return high, wide


CASES = {
    "strips of 16": Case(),
    "strips of 16, small": Case(N=16, C=2, H=3, W=2, density=0.5),
    "strips of 32, three clients": Case(clients=3, V=32, B=5, C=3),
    "strips of 64, more entries than a step": Case(N=64, C=5, V=64, H=3, density=0.8),
    "stride 2, odd map, one image beyond a block": Case(stride=(2, 2), H=5, W=7, B=17, C=3),
    "stride 2, 1x1": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2), C=24, H=4, W=4),
    "1x1": Case(kernel=(1, 1), C=50, padding=(0, 0), V=32, H=2),
    "1x1, padded": Case(kernel=(1, 1), padding=(1, 2), C=9, H=2),
    "no padding": Case(padding=(0, 0), H=5, W=6),
    "dilation, rectangular": Case(kernel=(1, 3), dilation=(2, 3), padding=(0, 3), stride=(1, 2), W=11, H=3),
    "padding beyond the kernel": Case(padding=(4, 3), H=2, W=3, C=3),
    "linear": Case(kernel=(1, 1), padding=(0, 0), H=1, W=1, B=37, C=40, density=0.6),
    "several tiles of outputs": Case(H=6, W=7, B=16, C=2),
    "full": Case(density=1.0, C=2),
    "one column": Case(density=-1.0),
    "nothing active": Case(density=0.0),
    "single weights": Case(N=7, V=1, C=3),
    "single weights, two clients, stride 2": Case(N=5, C=2, V=1, clients=2, stride=(2, 2), H=5, W=7, B=17),
    "single weights, 1x1, rows of many": Case(N=2, V=1, C=40, kernel=(1, 1), padding=(0, 0), density=0.7, H=2, W=3),
    "single weights, dilation": Case(N=5, V=1, dilation=(2, 1), padding=(2, 1), kernel=(3, 2)),
    "single weights, padding beyond the kernel": Case(N=3, V=1, padding=(4, 3), H=3, C=3),
    "single weights, several tiles": Case(N=2, V=1, H=7, W=6, B=16, C=2),
    "single weights, one": Case(N=5, V=1, density=-1.0),
    "single weights, nothing active": Case(N=5, V=1, density=0.0),
}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
# float32 runs every case, the other types (the interpreter is slow) these; strips in float64 are single weights
OTHERS = {
    "strips of 16, small": ("float64",),
    "strips of 32, three clients": ("float16", "bfloat16"),
    "stride 2, 1x1": ("bfloat16",),
    "single weights, two clients, stride 2": ("float16", "bfloat16", "float64"),
}
RUNS = [(case, "float32") for case in CASES]
RUNS += [(case, dtype) for case, dtypes in OTHERS.items() for dtype in dtypes]


def mask_of(case: Case) -> Tensor:
    """With an empty first and third group of rows where there are so many; density -1 has one active column."""
    shape = (case.N // case.V, case.C, *case.kernel)
    groups = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < case.density
    if case.density < 0:
        groups.reshape(-1)[groups.numel() // 2] = True
    elif case.density < 1 and len(groups) > 3:
        groups[0] = groups[2] = False
    return groups.repeat_interleave(case.V, 0)


def errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Relative error of each product against dense float64 torch: of `strips` where it takes the case, else `direct`."""
    generator = torch.Generator().manual_seed(case.B * 131 + case.N)
    t = Topology.from_mask(mask_of(case), case.V)
    values = torch.randn(case.clients, t.nnz, generator=generator).to(dtype)
    bias = torch.randn(case.clients, case.N, generator=generator).to(dtype)
    x = torch.randn(case.clients, case.B, case.C, case.H, case.W, generator=generator).to(dtype)
    gy = torch.randn(case.clients, case.B, case.N, *case.size, generator=generator).to(dtype)
    expected = [dense(case, t, *(each.double() for each in operands)) for operands in zip(values, x, gy)]
    y, dx, dv = (torch.stack(each) for each in zip(*expected))
    with_bias = y + bias.double()[:, None, :, None, None]
    xb, gb = to_lanes(x), to_lanes(gy)
    if case.V > 1 and dtype != torch.float64:
        found = of_strips(case, t, values, bias, xb, gb, (y, with_bias, dv, dx))
        return {name: error(case, out, wanted) for name, (out, wanted) in found.items()}
    rows, columns = single_rows(Index.of(t)), single_columns(Index.of(t), case.kernel[0] * case.kernel[1])
    found = {
        "direct product": (
            direct.direct_product(values, *rows, xb, bias, case.geometry, case.size),
            with_bias,
        ),
        "direct transposed": (
            direct.direct_transposed(values, *columns, gb, case.geometry, (case.H, case.W)),
            dx,
        ),
        "direct sample": (direct_sample(gb, xb, *rows, case.geometry), dv),
    }
    return {name: error(case, out, wanted) for name, (out, wanted) in found.items()}


def of_strips(
    case: Case, t: Topology, values: Tensor, bias: Tensor, xb: Tensor, gb: Tensor, wanted: tuple[Tensor, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The products of `strips`, with the packing before and after."""
    starts, cols, t_starts, t_taps = plan(Index.of(t), case.V, case.kernel[0] * case.kernel[1])
    packed = strip_pack.pack_strips(values, starts, case.V, values.dtype)
    parts = strip_sample(gb, xb, starts, cols, case.V, case.geometry, False)
    product = lambda with_bias: strip_product(  # noqa: E731
        packed, starts, cols, xb, with_bias, case.geometry, case.size, False
    )
    dx = xb.new_empty(xb.shape)
    blocks = xb.shape[4]
    for weights, g, target in zip(packed, gb, dx, strict=True):
        for some, part in zip(g.split(1, 3), target.split(1, 3), strict=True):
            spread = strip_spread(weights, starts, some, blocks, False)
            direct.gather_entries(spread, t_starts, t_taps, case.geometry, part, blocks)
    return {
        "strip product": (product(None), wanted[0]) if case == CASES["full"] else (product(bias), wanted[1]),
        "strip spread": (dx, wanted[3]),
        "strip sample": (strip_pack.unpack_strips(parts, starts, values.dtype), wanted[2]),
    }


def dense(case: Case, t: Topology, values: Tensor, x: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dvalues) of one client by torch's autograd in float64."""
    weight, x = t.unpack(values).requires_grad_(), x.requires_grad_()
    y = F.conv2d(x, weight, None, case.stride, case.padding, case.dilation)
    dx, dw = torch.autograd.grad(y, (x, weight), gy)
    return y.detach(), dx, t.pack(dw)


def error(case: Case, out: Tensor, wanted: Tensor) -> float:
    """Of the true images only: in the other lanes stands what the bias makes of zeros."""
    return relative_error(from_lanes(out, case.B) if out.dim() == 6 else out, wanted)


if __name__ == "__main__":
    poison_new_tensors()
    json.dump({f"{c}/{d}": errors(CASES[c], DTYPES[d]) for c, d in RUNS}, sys.stdout, allow_nan=True)
