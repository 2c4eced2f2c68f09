import pytest
import torch
from blocked_cases import BATCHES, close, poisoned, random
from op_cases import DTYPES

from fedsparse import ops
from fedsparse.ops.blocked import reference_blocked_sum, reference_from_blocked, reference_to_blocked

RAW = torch.ops.fedsparse


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8)], ids=["one pixel", "primes", "whole vectors"])
def test_there_and_back(batch: int, dtype: torch.dtype, size: tuple[int, int], isa: str) -> None:
    x = random(batch, 3, *size, dtype=dtype)
    blocks = ops.to_blocked(x)
    assert torch.equal(blocks, reference_to_blocked(x))
    assert torch.equal(ops.from_blocked(poisoned(x), batch), x)
    close(RAW.blocked_sum(poisoned(x), batch), reference_blocked_sum(reference_to_blocked(x.double()), batch))


def test_each_is_the_gradient_of_the_other() -> None:
    x = random(5, 2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(ops.to_blocked, x)
    assert torch.autograd.gradcheck(lambda b: ops.from_blocked(b, 5), reference_to_blocked(x.detach()).requires_grad_())
    assert torch.autograd.gradgradcheck(ops.to_blocked, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x = random(5, 2, 3, 2, dtype=dtype)
    torch.library.opcheck(RAW.to_blocked, (x,))
    torch.library.opcheck(RAW.from_blocked, (reference_to_blocked(x), 5))
    torch.library.opcheck(RAW.blocked_sum, (reference_to_blocked(x), 5))


def test_no_images() -> None:
    assert ops.to_blocked(torch.empty(0, 3, 2, 2)).shape == (0, 3, 2, 2, 16)
    assert reference_from_blocked(torch.empty(0, 3, 2, 2, 16), 0).shape == (0, 3, 2, 2)
    assert ops.from_blocked(torch.empty(0, 3, 2, 2, 16), 0).shape == (0, 3, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.to_blocked(torch.zeros(2, 3, 4)), ValueError, "4 dimensions"),
        (lambda: ops.to_blocked(torch.zeros(2, 3, 4, 4).half()), ValueError, "float32, float64 or bfloat16"),
        (lambda: ops.from_blocked(torch.zeros(1, 3, 4, 4, 8), 3), ValueError, "16"),
        (lambda: ops.from_blocked(torch.zeros(1, 3, 4, 4, 16), 17), ValueError, "17 images"),
        (lambda: RAW.from_blocked(torch.zeros(1, 3, 4, 4, 16), 17), RuntimeError, "batch 17"),
        (lambda: RAW.from_blocked(torch.zeros(1, 3, 4, 4, 8), 3), RuntimeError, "16 images"),
        (lambda: RAW.to_blocked(torch.zeros(2, 3, 4)), RuntimeError, "4 dimension"),
    ],
)
def test_bad_operands_get_one_sentence(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
