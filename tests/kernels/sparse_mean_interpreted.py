"""Sums of reports on the Triton back end, in the interpreter, against the reference; prints what is equal.

Started by test_sparse_mean_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys

import torch
from selection_interpreted import poison
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.pack_activation import pack_bits

# Places, shares, and how many of the places a client has: why
CASES: dict[str, tuple[int, list[float], float]] = {
    "several blocks, primes": (2053, [1 / 7, 2 / 7, 4 / 7], 0.3),
    "one client": (1024, [1.0], 0.05),
    "everything": (24, [0.5, 0.25, 0.25], 1.0),
    "nothing": (4096, [0.5, 0.5], 0.0),
    "many clients": (40, [1 / 33] * 33, 0.5),
    "nobody": (16, [], 0.5),
}


def reports(name: str) -> tuple[Tensor, Tensor, list[float]]:
    """Magnitudes from below the unit 2^-40 to 2^22, half of them halves of units: ties, and beyond 2^52 units."""
    size, shares, density = CASES[name]
    generator = torch.Generator().manual_seed(6)
    flags = torch.rand(len(shares), size, generator=generator) < density
    count = int(flags.sum())
    power = torch.randint(-42, 22, (count,), generator=generator)
    values = (torch.rand(count, generator=generator) * 2 - 1) * 2.0**power
    ties = torch.randint(-9, 10, (count,), generator=generator) * 2.0**-41
    return pack_bits(flags), torch.where(torch.arange(count) % 2 == 0, values, ties), shares


def equal(name: str, dtype: torch.dtype) -> bool:
    """Whether all three of `sparse_sum` and of `sparse_mean` are the reference's."""
    bits, values, shares = reports(name)
    same = []
    for run in (ops.sparse_sum, ops.sparse_mean):
        with ops.use_backend("triton"):
            found = run(bits, values.to(dtype), shares)
        with ops.use_backend("reference"):
            expected = run(bits, values.to(dtype), shares)
        same += [torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True)]
    return all(same)


def refused() -> str:
    with ops.use_backend("triton"):
        try:
            ops.sparse_sum(torch.ones(1, 1, dtype=torch.uint8), torch.ones(2), [1.0])
        except ValueError as error:
            return str(error)
    return ""


if __name__ == "__main__":
    poison()
    result: dict[str, object] = {name: equal(name, torch.float32) for name in CASES}
    result["bfloat16"] = equal("several blocks, primes", torch.bfloat16)
    json.dump(result | {"refused": refused()}, sys.stdout)
