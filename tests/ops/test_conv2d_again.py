"""A convolution that the backward pass runs once more."""

import pytest
import torch

from fedsparse import ops
from fedsparse.topology import Topology


@pytest.mark.parametrize("name", ["cpu", "dense", "reference"])
def test_the_bits_are_those_of_the_back_end_that_was_active(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    topology = Topology.from_mask(torch.rand(6, 5, 3, 3, generator=generator) < 0.3)
    values, x = torch.randn(topology.nnz, generator=generator), torch.randn(4, 5, 7, 6, generator=generator)
    bias = torch.randn(6, generator=generator)
    with ops.use_backend(name):
        y = ops.conv2d(values, topology, x, bias, 2, 1)
        again = ops.conv2d_again(values, topology, x, bias, 2, 1)
    assert torch.equal(again(x), y)


@pytest.mark.parametrize("changed", ["values", "bias"])
def test_what_was_changed_meanwhile_is_refused(changed: str) -> None:
    topology = Topology.from_mask(torch.ones(2, 1, 1, 1, dtype=torch.bool))
    given = {"values": torch.ones(2, requires_grad=True), "bias": torch.ones(2)}
    x = torch.ones(3, 1, 2, 2)
    again = ops.conv2d_again(given["values"], topology, x, given["bias"])
    assert torch.equal(again(x), torch.full((3, 2, 2, 2), 2.0))
    with torch.no_grad():
        given[changed].mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        again(x)
