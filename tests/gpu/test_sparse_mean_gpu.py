"""Sums of reports on the device: the bits of the CPU."""

import pytest
import torch
from sparse_problems import poison, random

from fedsparse import ops
from fedsparse.ops.pack_activation import pack_bits


@pytest.mark.parametrize("backend", ["triton", "dense"])
@pytest.mark.parametrize(("size", "clients"), [(9, 1), (70_001, 3), (2_359_296, 10)])
def test_as_on_the_cpu(size: int, clients: int, backend: str) -> None:
    """Magnitudes over many powers of two, and halves of the unit 2^-40, which are ties."""
    flags = torch.rand(clients, size, generator=torch.Generator().manual_seed(1)) < 0.1
    count = int(flags.sum())
    values = random(count) * 2.0 ** random(count, seed=2).mul(8).round().clamp(-40, 18)
    values[::2] = random(count, seed=3).mul(4).round()[::2] * 2.0**-41
    shares = [(client + 1) / sum(range(clients + 1)) for client in range(clients)]
    bits = pack_bits(flags)
    for run in (ops.sparse_sum, ops.sparse_mean):
        expected = run(bits, values, shares)
        poison()
        with ops.use_backend(backend):
            found = run(bits.cuda(), values.cuda(), shares)
            again = run(bits.cuda(), values.cuda(), shares)
        for ours, theirs, twice in zip(found, expected, again, strict=True):
            assert ours.is_cuda
            assert torch.equal(ours.cpu(), theirs)
            assert torch.equal(ours, twice)
