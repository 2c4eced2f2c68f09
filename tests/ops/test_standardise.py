"""standardise: the formula by hand and against a loop, gradients against finite differences, what is refused."""

import pytest
import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

RAW = torch.ops.fedsparse
LEAST = 1e-4
BACKENDS = ["cpu", "dense", "reference"]


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_standardised_weights_by_hand(backend: str) -> None:
    """Four filters with 3, 2, 1 and 0 active weights.

    1, 2, 3 and gain 2: mean 2, sum of squares 2, so 2 (-1, 0, 1) / sqrt 2 = -1.4142, 0, 1.4142.
    5, 1 and gain 1: mean 3, squares 4 + 4, so 2 / sqrt 8 = .7071, -.7071. One weight: 0 / sqrt LEAST = 0.
    """
    values = torch.tensor([1.0, 2.0, 3.0, 5.0, 1.0, 7.0])
    indptr = torch.tensor([0, 3, 5, 6, 6], dtype=torch.int32)
    with ops.use_backend(backend):
        found = ops.standardise(values, torch.tensor([2.0, 1.0, 1.0, 1.0]), indptr, LEAST)
    assert torch.allclose(found, torch.tensor([-1.4142, 0.0, 1.4142, 0.7071, -0.7071, 0.0]), atol=1e-4)


def test_the_formula_filter_by_filter() -> None:
    """gain (w - mean) / (std sqrt N), std with N in the denominator, over a filter's active weights."""
    mask = torch.rand(6, 5, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    topology, values, gain = Topology.from_mask(mask), double(int(mask.sum())), double(6, seed=2)
    weight = topology.unpack(ops.standardise(values, gain, topology.indptr, LEAST))
    dense = topology.unpack(values)
    for n in range(6):
        w = dense[n][mask[n]]
        expected = gain[n] * (w - w.mean()) / (w.std(correction=0) * len(w) ** 0.5)
        torch.testing.assert_close(weight[n][mask[n]], expected)
        assert float(weight[n].square().sum()) == pytest.approx(float(gain[n] ** 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_formula(backend: str) -> None:
    indptr = torch.tensor([0, 4, 7, 8, 8, 10], dtype=torch.int32)
    values, gain = double(10), double(5, seed=1)
    values[8:] = 0.3
    assert float((values[4:7] - values[4:7].mean()).square().sum()) > LEAST
    inputs = (values.requires_grad_(), gain.requires_grad_())
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(lambda v, g: ops.standardise(v, g, indptr, LEAST), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[1000, 3, 0, 17, 256], [8] * 40, [0], [1]])
def test_back_ends_agree(lengths: list[int], dtype: torch.dtype) -> None:
    """To rounding; the last row of the first case has equal weights, whose scale is fixed by `least`."""
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    values, gain, g = (
        double(sum(lengths)).to(dtype),
        double(len(lengths), seed=1).to(dtype),
        double(sum(lengths), seed=2),
    )
    values[starts[-2] :] = 0.25
    found = []
    for backend in BACKENDS:
        leaves = values.clone().requires_grad_(), gain.clone().requires_grad_()
        with ops.use_backend(backend):
            used = ops.standardise(*leaves, starts, LEAST)
            used.backward(g.to(dtype))
        found.append((used.detach(), leaves[0].grad, leaves[1].grad))
    for others in found[1:]:
        for mine, other in zip(found[0], others):
            torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


def test_rows_that_do_not_fit_are_refused() -> None:
    values, gain = torch.zeros(4), torch.zeros(2)
    with pytest.raises(RuntimeError, match="starts must rise from 0 to 4"):
        RAW.standardise(values, gain, torch.tensor([0, 5, 4], dtype=torch.int32), LEAST)
    with pytest.raises(RuntimeError, match="one entry more than gain"):
        RAW.standardise(values, gain, torch.tensor([0, 4], dtype=torch.int32), LEAST)
    with pytest.raises(RuntimeError, match="g must have 4 entries"):
        RAW.standardise_gradient(torch.zeros(3), values, gain, torch.tensor([0, 2, 4], dtype=torch.int32), LEAST)


def test_opcheck() -> None:
    operands = torch.randn(6), torch.ones(2), torch.tensor([0, 2, 6], dtype=torch.int32), LEAST
    torch.library.opcheck(RAW.standardise.default, operands, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(
        RAW.standardise_gradient.default, (torch.randn(6), *operands), test_utils=("test_schema", "test_faketensor")
    )
