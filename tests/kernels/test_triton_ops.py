"""conv2d and spmm with `use_backend("triton")` and "condensed": outputs, every gradient, and clients in one launch, interpreted."""

import os

import pytest
import torch

pytest.importorskip("triton")

from interpreted import run
from triton_ops_interpreted import ALL

from fedsparse.ops import condensed, strips
from fedsparse.ops.index import Index
from fedsparse.topology import Topology


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return run("triton_ops_interpreted.py")


@pytest.mark.parametrize(("name", "backend", "together"), ALL)
def test_against_the_reference(
    interpreted: dict[str, dict[str, float]], name: str, backend: str, together: bool
) -> None:
    """One client, or two in one launch."""
    found = interpreted[f"{name}/{backend}/{together}"]
    assert set(found) == {"y", "values", "x", "bias"}
    for what, error in found.items():
        assert error <= 1e-6, f"{what}: {error:.2e}"


def test_the_plan_holds_each_strips_columns() -> None:
    """Three strips of 2: columns 1 and 3; none; 0. Made once for a mask."""
    mask = torch.tensor([[0, 1, 0, 1]] * 2 + [[0, 0, 0, 0]] * 2 + [[1, 0, 0, 0]] * 2, dtype=torch.bool)
    index = Index.of(Topology.from_mask(mask, 2))
    plan = strips.plan(index, 2, taps=1)
    assert plan.starts.tolist() == [0, 2, 2, 3]
    assert plan.cols.tolist() == [1, 3, 0]
    assert {each.dtype for each in plan} == {torch.int32}
    assert strips.plan(index, 2, taps=1) is plan


def test_the_plan_holds_each_channels_entries() -> None:
    """Channel 0: tap 1 of strip 0, tap 2 of strip 1 (entries 0, 2); channel 1: taps 0 and 1 (entries 1, 3)."""
    mask = torch.zeros(2, 2, 1, 3, dtype=torch.bool)
    mask[0, 1, 0, 0] = mask[0, 0, 0, 1] = mask[1, 0, 0, 2] = mask[1, 1, 0, 1] = True
    plan = strips.plan(Index.of(Topology.from_mask(mask.repeat_interleave(2, 0), 2)), 2, taps=3)
    assert plan.cols.tolist() == [1, 3, 2, 4]
    assert plan.t_starts.tolist() == [0, 2, 4]
    assert plan.t_taps.tolist() == [0 * 3 + 1, 2 * 3 + 2, 1 * 3 + 0, 3 * 3 + 1]


def test_the_union_holds_each_column_of_16_rows_once() -> None:
    """Rows 0 and 5 share column 1, row 5 has column 2 too; row 17 (row 1 of the second strip) has column 0."""
    mask = torch.zeros(20, 3, dtype=torch.bool)
    mask[0, 1] = mask[5, 1] = mask[5, 2] = mask[17, 0] = True
    index = Index.of(Topology.from_mask(mask))
    found = condensed.union(index, 3)
    assert found.starts.tolist() == [0, 2, 3]
    assert found.cols.tolist() == [1, 2, 0]
    assert found.place.tolist() == [0 * 16 + 0, 0 * 16 + 5, 1 * 16 + 5, 2 * 16 + 1]
    assert condensed.union(index, 3) is found


def test_lanes_and_back() -> None:
    """Image b is lane b % 16 of block b // 16, innermost; lanes without an image hold zeros."""
    x = torch.arange(2 * 17 * 3 * 2 * 4, dtype=torch.float32).reshape(2, 17, 3, 2, 4)
    lanes = strips.to_lanes(x)
    assert lanes.shape == (2, 3, 2, 4, 2, 16)
    assert torch.equal(lanes[0, ..., 0, 3], x[0, 3])
    assert torch.equal(lanes[1, ..., 1, 0], x[1, 16])
    assert not lanes[..., 1, 1:].any()
    assert torch.equal(strips.from_lanes(lanes, 17), x)


def test_images_that_stand_innermost_are_not_copied() -> None:
    """Neither what a layer returned, nor what an elementwise function made of it."""
    lanes = torch.randn(1, 3, 2, 4, 2, 16)
    x = strips.from_lanes(lanes, 32)
    assert strips.to_lanes(x).data_ptr() == lanes.data_ptr()
    after = torch.relu(x[0]) + x[0]
    assert strips.to_lanes(after[None]).data_ptr() == after.data_ptr()


def test_triton_needs_a_gpu_or_the_interpreter() -> None:
    from fedsparse import ops

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets")
    with pytest.raises(ValueError, match="needs tensors on cuda"), ops.use_backend("triton"):
        ops.active_backend("cpu")
