"""Packs and unpacks activations on the Triton back end, in the interpreter, against the reference; prints what is equal.

Started by test_packing_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys

import torch
from fedsparse.kernels import pack as kernels
from selection_interpreted import poison
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.pack_activation import _reference_pack, _reference_unpack

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


INPUTS: dict[str, Tensor] = {
    "several programs, no multiple of 8": random(2, 1030),
    "after a ReLU": random(1, 300).relu(),
    "ties across programs": (torch.arange(1030) % 3 - 1.0)[None],
    "all equal": torch.full((2, 130), -3.0),
    "zeros": torch.zeros(2, 40),
    "less than a byte": random(4, 5),
    "one entry": random(3, 1),
    "both zeros and infinities": torch.tensor([[0.0, -0.0, -1.0, 0.0, torch.inf, -torch.inf, -0.0, 1e-7, -1e-7]]),
    "no row": random(0, 6),
}
MANY = 1024
RUNS = [(name, "float32", MANY) for name in INPUTS]
RUNS += [(name, "float32", 2) for name in INPUTS if "programs" in name]
RUNS += [("several programs, no multiple of 8", dtype, MANY) for dtype in ("float64", "bfloat16", "float16")]


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def packed(name: str, dtype: str, programs: int) -> bool:
    """Whether bits, values and starts are those of the reference for several counts, and come back."""
    x = INPUTS[name].to(DTYPES[dtype])
    n, same = x.shape[1], []
    for count in sorted({1, n // 2, n} if dtype == "float32" else {n // 2}):
        # bfloat16 values of float32 tensors for one of the counts
        for stored in {x.dtype, torch.bfloat16 if x.dtype == torch.float32 and count == n // 2 else x.dtype}:
            half = stored == torch.bfloat16
            expected = _reference_pack(x, count, half)
            found = kernels.pack(x, count, stored, programs)
            same.append(equal(found, expected))
            wide = torch.float32 if half else x.dtype
            back = kernels.unpack(*found, n, wide, programs)
            same.append(equal((back,), (_reference_unpack(*expected, n),)))
    return all(same)


def public() -> bool:
    """The back end by its name: a bfloat16 tensor comes back as one, some samples too; NaN is the largest."""
    x = random(3, 4, 5, 6).bfloat16()
    with ops.use_backend("triton"):
        kept = ops.pack_activation(x, 0.3, bfloat16=True)
        whole, some = kept.unpack(), kept.unpack(1, 2)
        odd = ops.pack_activation(torch.tensor([[1.0, torch.nan, -torch.inf, 2.0]]), 0.25, bfloat16=True)
    with ops.use_backend("reference"):
        expected = ops.pack_activation(x, 0.3).unpack()
    return equal((whole, some), (expected, expected[1:2])) and odd.bits.tolist() == [[2]] and bool(odd.values.isnan())


if __name__ == "__main__":
    poison()
    found = {f"{name}/{dtype}/{programs}": packed(name, dtype, programs) for name, dtype, programs in RUNS}
    json.dump(found | {"public": public()}, sys.stdout)
