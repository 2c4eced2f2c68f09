"""What a message of ResNet-18 at 5 % density takes beside a dense one in fp32: encoded bytes, not formulas."""

import pytest
import torch

from fedsparse import models
from fedsparse.federated import exchange
from fedsparse.nn import sparsify
from fedsparse.wire import Bitmap, Carrier, encode


@pytest.fixture(scope="module")
def pair() -> tuple[int, torch.nn.Module]:
    model = models.build("resnet18", 10, channels=3, image_size=32)
    dense = len(encode("weights", 0, -1, exchange.sections(model, "fp32", 0)))
    return dense, sparsify(model, 0.05)


@pytest.mark.parametrize(("wire", "goal"), [("fp32", 19), ("fp16", 38), ("bf16", 38), ("int8", 70)])
def test_a_round_between_adjustments(pair: tuple[int, torch.nn.Module], wire: Carrier, goal: int) -> None:
    dense, sparse = pair
    assert dense / len(encode("report", 0, 0, exchange.sections(sparse, wire, 0))) > goal


def test_a_mask_costs_less_than_six_bits_an_active_weight(pair: tuple[int, torch.nn.Module]) -> None:
    """ERK's layers differ in density from 2 % to 100 %: the code follows them."""
    mask = exchange.mask(pair[1])
    assert Bitmap(mask).nbytes < 6 / 8 * int(mask.sum())
