"""sparse_sum and sparse_mean: by hand, and bit for bit what `Total` makes of the same reports as messages."""

import pytest
import torch

from fedsparse import ops
from fedsparse.federated import Total
from fedsparse.ops.pack_activation import pack_bits
from fedsparse.wire import Masked


def test_by_hand() -> None:
    """Shares 1/4 and 3/4: place 0: both, (1 + 9) / 4; 1: the first; 2: the second; 9: the first; no other."""
    bits = torch.tensor([[0b011, 0b10], [0b101, 0]], dtype=torch.uint8)
    values = torch.tensor([1.0, 5.0, -2.0, 3.0, 7.0])
    places, sums, weights = ops.sparse_sum(bits, values, [0.25, 0.75])
    assert places.tolist() == [0, 1, 2, 9]
    assert sums.tolist() == [10 * 2**38, 5 * 2**38, 21 * 2**38, -2 * 2**38]
    assert weights.tolist() == [2**40, 2**38, 3 * 2**38, 2**38]
    _, mean, share = ops.sparse_mean(bits, values, [0.25, 0.75])
    assert mean.tolist() == [2.5, 5.0, 7.0, -2.0]
    assert share.tolist() == [1.0, 0.25, 0.75, 0.25]


def test_halves_go_to_the_even_integer() -> None:
    """x 2^40 / 2 = 0.5, 1.5, 2.5 and -0.5 units of 2^-40."""
    values = torch.tensor([1.0, 3.0, 5.0, -1.0]) * 2.0**-40
    _, sums, _ = ops.sparse_sum(torch.tensor([[0b1111]], dtype=torch.uint8), values, [0.5])
    assert sums.tolist() == [0, 2, 2, 0]


def test_as_the_engine_adds_messages() -> None:
    samples = [3, 5, 9, 1]
    masks, total = torch.rand(4, 200, generator=torch.Generator().manual_seed(0)) < 0.4, Total(sum(samples))
    values = [torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(1)) * 1e5 for mask in masks]
    for client, (n, mask, own) in enumerate(zip(samples, masks, values)):
        total.add(client, n, {"w": Masked(mask, own)})
    shares = [n / sum(samples) for n in samples]
    found = ops.sparse_mean(pack_bits(masks), torch.cat(values), shares)
    for ours, theirs in zip(found, total.masked("w"), strict=True):
        assert torch.equal(ours, theirs)


def test_nobody_and_nothing() -> None:
    for bits in (torch.zeros(0, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8)):
        found = ops.sparse_mean(bits, torch.empty(0), [0.5] * len(bits))
        assert [len(each) for each in found] == [0, 0, 0]


@pytest.mark.parametrize(
    ("bits", "values", "shares", "said"),
    [
        (torch.ones(1, 1, dtype=torch.uint8), torch.ones(2), [1.0], "1 bits are set, but there are 2 values"),
        (torch.ones(1, 1, dtype=torch.bool), torch.ones(1), [1.0], "bits must be uint8"),
        (torch.ones(1, 1, dtype=torch.uint8), torch.ones(1).double(), [1.0], "of 32 or 16 bits"),
        (torch.ones(1, 1, dtype=torch.uint8), torch.ones(1), [0.5, 0.5], "1 clients and 2 shares"),
    ],
)
def test_refuses(bits: torch.Tensor, values: torch.Tensor, shares: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ops.sparse_sum(bits, values, shares)
