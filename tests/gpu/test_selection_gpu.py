"""topk and grow_scores on the device: the reference's places, bit for bit."""

import pytest
import torch
from sparse_problems import poison, random, topology

from fedsparse import ops


@pytest.fixture
def no_wait() -> object:
    """A context in which whatever makes the host wait for the device raises."""

    class NoWait:
        def __enter__(self) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_: object) -> None:
            torch.cuda.set_sync_debug_mode("default")

    return NoWait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 1000, 70_001, 3_000_000])
def test_topk(size: int, dtype: torch.dtype) -> None:
    """bfloat16 has thousands of ties."""
    scores = random(size, dtype=dtype)
    sizes, counts = [size // 3, 0, size - size // 3], [size // 7, 0, size // 2]
    with ops.use_backend("reference"):
        expected = ops.topk_segmented(scores, sizes, counts)
    poison()
    on_device = scores.cuda()
    assert torch.equal(ops.topk_segmented(on_device, sizes, counts).cpu(), expected)
    assert torch.equal(ops.topk_segmented(on_device, sizes, counts).cpu(), expected)


def test_topk_kernels_make_nobody_wait(no_wait: object) -> None:
    from fedsparse.ops.topk import triton_selected

    scores = random(100_000).cuda()
    triton_selected(scores, [60_000, 40_000], [5, 40_000])
    torch.cuda.synchronize()
    with no_wait:  # type: ignore[attr-defined]
        found = triton_selected(scores, [60_000, 40_000], [7, 39_999])
    assert len(found) == 40_006


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("granularity", [1, 16])
def test_growth(granularity: int, directed: bool, no_wait: object) -> None:
    """Small integers, whose sums are exact in any order: the same gradient on both devices, with many ties."""
    t = topology((64 // granularity, 24, 3, 3), 0.2)
    t = type(t).from_mask(t.mask().repeat_interleave(granularity, 0), granularity)
    x, gy = random(8, 24, 9, 9).round(), random(8, 64, 9, 9, seed=1).round()
    direction = random(64, 24, 3, 3, seed=2).sign() if directed else None
    expected = ops.grow_scores(x, gy, t, 50, padding=1, direction=direction)
    poison()
    there = None if direction is None else direction.cuda()
    found = ops.grow_scores(x.cuda(), gy.cuda(), t.to("cuda"), 50, padding=1, direction=there)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    gradient = random(64, 24 * 9, seed=4).cuda()
    search = ops.GrowSearch(t.to("cuda"), 20, there)
    search.look_at(0, gradient[:32])
    torch.cuda.synchronize()
    with no_wait:  # type: ignore[attr-defined]
        search.look_at(32, gradient[32:])
    assert len(search.found()[0]) == 20
