"""Runs topk and grow_scores on the Triton back end, in the interpreter, against the references; prints what differs.

Started by test_selection_triton.py in a process of its own: TRITON_INTERPRET is read when triton is imported.
"""

import json
import sys
from collections.abc import Callable

import torch
from fedsparse.kernels import topk as kernels
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.grow_scores import Best, _nothing, triton_merged
from fedsparse.ops.grow_scores import reference as reference_merged
from fedsparse.ops.topk import reference as reference_topk
from fedsparse.topology import Topology

FLOATS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# name: (scores in float64, sizes, counts): of each dtype
SCORES: dict[str, tuple[Tensor, list[int], list[int]]] = {
    "several programs": (random(2100), [2100], [700]),
    "segments, one empty, one whole, one of which nothing is taken": (
        random(1160),
        [1030, 0, 7, 30, 93],
        [1, 0, 7, 0, 50],
    ),
    "ties across programs": (torch.arange(2060) % 3 - 1.0, [2060], [1000]),
    "all equal": (torch.zeros(1030), [1030], [1025]),
    "both zeros and infinities": (
        torch.tensor([0.0, -0.0, -1.0, 0.0, torch.inf, -torch.inf, -0.0, 1e-45, -1e-45]),
        [9],
        [5],
    ),
    "one score": (torch.ones(1), [1], [1]),
    "nothing": (torch.ones(3), [3], [0]),
}

# name: (rows, width, V, density, count, with a direction)
TILES = {
    "single weights": (12, 37, 1, 0.3, 40, False),
    "directed": (12, 37, 1, 0.3, 40, True),
    "vectors of 4": (8, 530, 4, 0.2, 25, False),
    "vectors of 4, directed": (16, 20, 4, 0.2, 9, True),
    "more than there are": (4, 9, 1, 0.7, 100, True),
    "none": (4, 9, 1, 0.5, 0, False),
    "all active": (4, 9, 1, 1.0, 5, False),
}

MANY = 1024  # programs: one step each; 2 programs take their parts in several steps
TOPK_RUNS = [(name, "float32", MANY) for name in SCORES]
TOPK_RUNS += [(name, "float32", 2) for name in SCORES if "programs" in name or "segments" in name]
TOPK_RUNS += [("segments, one empty, one whole, one of which nothing is taken", "float64", MANY)]
TOPK_RUNS += [("both zeros and infinities", dtype, MANY) for dtype in ("float64", "bfloat16")]
GROW_RUNS = [(name, "float32") for name in TILES]
GROW_RUNS += [(name, dtype) for name in ("directed", "vectors of 4") for dtype in ("float64", "bfloat16")]


def selected(name: str, dtype: str, programs: int) -> bool:
    """Whether the places are those of the reference."""
    scores, sizes, counts = SCORES[name]
    scores = scores.to(FLOATS[dtype])
    expected = reference_topk(scores, sizes, counts)
    wide = scores if dtype == "float64" else scores.float()
    return torch.equal(kernels.select(wide, sizes, counts, programs), expected)


def public() -> bool:
    """By the name of the back end, bfloat16 scores that are not contiguous."""
    scores = random(40, 2).bfloat16()[:, 0]
    with ops.use_backend("triton"):
        found = ops.topk_segmented(scores, [30, 10], [3, 4])
    return torch.equal(found, reference_topk(scores, [30, 10], [3, 4]))


def grown(name: str, dtype: str) -> bool:
    """Whether the best of two tiles are those of the reference, padding included."""
    rows, width, V, density, count, directed = TILES[name]
    groups = torch.rand(rows // V, width, generator=torch.Generator().manual_seed(7)) < density
    t = Topology.from_mask(groups.repeat_interleave(V, 0), V)
    gradient = (random(rows, width, seed=3) * 4).round().div(4).to(FLOATS[dtype])  # with ties and zeros
    direction = random(rows, width, seed=5).sign().to(gradient) if directed else None
    half = rows // V // 2 * V

    def best(merge: Callable[..., Best]) -> Best:
        found = _nothing(count, V, t.device)
        for first, stop in ((0, half), (half, rows)):
            along = None if direction is None else direction[first:stop]
            found = merge(gradient[first:stop], t.indptr, t.cols, first, V, along, *found)
        return found

    with ops.use_backend("reference"):
        expected = best(reference_merged)
    with ops.use_backend("triton"):
        found = best(triton_merged)
    same = [torch.equal(a, b) for a, b in zip(found[:1], expected[:1])]
    real = expected.scores >= 0
    same += [torch.equal(a[real], b[real]) for a, b in zip(found[1:], expected[1:])]
    return all(same)


def refuses_nan(dtype: str) -> bool:
    """A NaN at an active place of the first of two tiles."""
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 2] = True
    gradient = torch.ones(4, 5, dtype=FLOATS[dtype])
    gradient[0, 2] = torch.nan
    with ops.use_backend("triton"):
        search = ops.GrowSearch(Topology.from_mask(mask), 3)
        search.look_at(0, gradient[:2])
        search.look_at(2, gradient[2:])
        try:
            search.found()
        except ValueError as error:
            return "NaN" in str(error)
    return False


def poison() -> None:
    """New memory holds large numbers: a place that no program writes shows."""
    plain = torch.empty

    def filled(*size: object, **options: object) -> Tensor:
        new = plain(*size, **options)  # type: ignore[call-overload]
        return new.fill_(2**30) if not new.is_floating_point() else new.fill_(torch.nan)

    torch.empty = filled  # type: ignore[assignment]


if __name__ == "__main__":
    poison()
    found = {f"topk/{name}/{dtype}/{programs}": selected(name, dtype, programs) for name, dtype, programs in TOPK_RUNS}
    found |= {f"grow/{name}/{dtype}": grown(name, dtype) for name, dtype in GROW_RUNS}
    found["public"] = public()
    found |= {f"nan/{dtype}": refuses_nan(dtype) for dtype in FLOATS}
    json.dump(found, sys.stdout)
