import importlib

import pytest
import torch
from op_cases import CONVS, LINEARS, OpLog, conv_operands, linear_operands, peak_beyond, random_mask
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

module = importlib.import_module("fedsparse.ops.grow_scores")


def by_hand(gradient: Tensor, topology: Topology, count: int) -> tuple[Tensor, Tensor]:
    """The whole dense gradient, sorted: what grow_scores must not do."""
    V = topology.granularity
    groups = gradient.reshape(topology.rows // V, V, -1).transpose(1, 2).reshape(-1, V)
    active = topology.mask().reshape(topology.rows // V, V, -1)[:, 0].reshape(-1)
    score = groups.abs().sum(1).masked_fill(active, -1)
    order = torch.sort(score, descending=True, stable=True).indices[: min(count, int((~active).sum()))].sort().values
    return order, groups[order].squeeze(1) if V == 1 else groups[order]


def conv_gradient(topology: Topology, x: Tensor, gy: Tensor, geometry: dict) -> Tensor:
    return torch.nn.grad.conv2d_weight(x, topology.shape, gy, **geometry)


@pytest.fixture(params=[1, 50, 1 << 18], ids=["one row a tile", "few rows a tile", "one tile"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
@pytest.mark.parametrize("reason", ["primes", "stride 2", "dilation and stride", "dense", "nothing active"])
def test_convolution(reason: str, count: int, tile: int) -> None:
    case = CONVS[reason]
    topology, values, x, _ = conv_operands(case, torch.float32)
    gy = torch.randn_like(ops.conv2d(values, topology, x, **case.geometry))
    indices, gradients = ops.grow_scores(x, gy, topology, count, **case.geometry)
    expected, their = by_hand(conv_gradient(topology, x, gy, case.geometry), topology, count)
    assert gradients.dtype == torch.float32
    assert torch.equal(indices, expected)
    torch.testing.assert_close(gradients, their)


@pytest.mark.parametrize("reason", ["primes", "one row", "empty rows and columns"])
def test_linear(reason: str, tile: int) -> None:
    topology, _, x, _ = linear_operands(LINEARS[reason], torch.float64)
    gy = torch.randn(x.shape[0], topology.rows, dtype=torch.float64)
    indices, gradients = ops.grow_scores(x, gy, topology, 6)
    expected, their = by_hand(gy.T @ x, topology, 6)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(gradients, their.float())


@pytest.mark.parametrize("V", [1, 2])
@pytest.mark.parametrize("directed", [False, True])
def test_of_a_gradient_that_is_there_it_is_the_same(V: int, directed: bool, tile: int) -> None:
    topology = Topology.from_mask(random_mask((8 // V, 3, 3, 3), 0.3).repeat_interleave(V, 0), granularity=V)
    x, gy = torch.randn(2, 3, 6, 6), torch.randn(2, 8, 6, 6)
    direction = torch.randn(8, 3, 3, 3).sign() if directed else None
    gradient = conv_gradient(topology, x, gy, {"padding": 1})
    search = ops.GrowSearch(topology, 9, direction)
    for first in (4, 0):
        search.look_at(first, gradient[first : first + 4])
    indices, gradients = search.found()
    expected, their = ops.grow_scores(x, gy, topology, 9, padding=1, direction=direction)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(gradients, their)
    for first, rows in ((6, gradient[:3]), (0, gradient[:, 1:])):
        with pytest.raises(ValueError, match=f"rows {first} and following of a gradient of shape"):
            ops.GrowSearch(topology, 9).look_at(first, rows)


@pytest.mark.parametrize("V", [2, 4])
def test_groups_of_rows(V: int, tile: int) -> None:
    topology = Topology.from_mask(random_mask((8 // V, 3, 3, 3), 0.3).repeat_interleave(V, 0), granularity=V)
    x, gy = torch.randn(2, 3, 6, 6), torch.randn(2, 8, 6, 6)
    indices, gradients = ops.grow_scores(x, gy, topology, 9, padding=1)
    expected, their = by_hand(conv_gradient(topology, x, gy, {"padding": 1}), topology, 9)
    assert gradients.shape == (9, V)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(gradients, their)


def test_only_what_a_step_would_move_along_the_direction(tile: int) -> None:
    """One sample x = (1, 2, 3, 4), gy = (1, -1): gradients 1 2 3 4 | -1 -2 -3 -4, so a step goes down | up.

    Direction down where odd in row 0 and up where even in row 1, 0 elsewhere; weight 3 is active: left are 1 | 4, 6.
    """
    topology = Topology.from_flat(torch.tensor([3]), (2, 4))
    x, gy = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    direction = torch.tensor([[1, -1, 0, -1], [1, -1, 1, 0]], dtype=torch.int8)
    indices, gradients = ops.grow_scores(x, gy, topology, 5, direction=direction)
    assert indices.tolist() == [1, 4, 6]
    assert gradients.tolist() == [2.0, -1.0, -3.0]
    assert ops.grow_scores(x, gy, topology, 1, direction=direction)[0].tolist() == [6]


def test_a_group_agrees_by_majority(tile: int) -> None:
    """V = 2, gradients 1 2 3 | -1 -2 -3, steps down | up: column 0 agrees twice, 1 once of once, 2 once against once."""
    topology = Topology.from_flat(torch.empty(0, dtype=torch.int64), (2, 3), 2)
    direction = torch.tensor([[-1, 0, 1], [1, 1, 1]], dtype=torch.int8)
    x, gy = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, -1.0]])
    indices, gradients = ops.grow_scores(x, gy, topology, 3, direction=direction)
    assert indices.tolist() == [0, 1]
    assert gradients.tolist() == [[1.0, -1.0], [2.0, -2.0]]


def test_ties_go_to_the_lower_index(tile: int) -> None:
    """x and gy of ones give every weight the same gradient, the batch size 2."""
    topology = Topology.from_flat(torch.tensor([0, 3]), (4, 5))
    indices, gradients = ops.grow_scores(torch.ones(2, 5), torch.ones(2, 4), topology, 4)
    assert indices.tolist() == [1, 2, 4, 5]
    assert gradients.tolist() == [2.0] * 4


def test_no_more_than_a_tile_of_the_gradient_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows of 32 * 9 weights, tiles of 4 rows: no tensor is larger than x, gy, or a tile."""
    monkeypatch.setattr(module, "TILE", 4 * 32 * 9)
    topology = Topology.from_mask(random_mask((64, 32, 3, 3), 0.1))
    x, gy = torch.randn(1, 32, 6, 6), torch.randn(1, 64, 6, 6)
    with OpLog() as log:
        ops.grow_scores(x, gy, topology, 20, padding=1)
    assert log.largest == 4 * 32 * 9
    assert topology.numel == 16 * log.largest


@pytest.mark.parametrize("V", [1, 4])
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_the_reference(V: int, directed: bool, dtype: torch.dtype, tile: int) -> None:
    """Gradients of few different sizes, so that ties are everywhere."""
    topology = Topology.from_mask(random_mask((32 // V, 24), 0.2).repeat_interleave(V, 0), granularity=V)
    x, gy = torch.randint(-2, 3, (2, 24)).to(dtype), torch.randint(-2, 3, (2, 32)).to(dtype)
    direction = torch.randint(-1, 2, (32, 24), dtype=torch.int8) if directed else None
    for count in (1, 40, 10_000):
        found = ops.grow_scores(x, gy, topology, count, direction=direction)
        with ops.use_backend("reference"):
            expected = ops.grow_scores(x, gy, topology, count, direction=direction)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_uses_of_a_layer_add_up(tile: int) -> None:
    topology = Topology.from_mask(random_mask((7, 11), 0.3))
    x, gy = torch.randn(5, 11, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    indices, gradients = ops.grow_scores([x[:2], x[2:]], [gy[:2], gy[2:]], topology, 9)
    expected = ops.grow_scores(x, gy, topology, 9)
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(gradients, expected[1])


def test_memory_is_bounded_by_a_tile_and_the_candidates() -> None:
    """A dense gradient of 4096 x 1024 float32 is 16.8 MB. A tile is 2^18 numbers, 1 MB; for each of 10,000 candidates
    the kernel has 24 bytes of scratch, and 20 of the list before and after. A quarter of a tile is left for the rest."""
    topology = Topology.from_mask(random_mask((4096, 1024), 0.05))
    x, gy = torch.randn(8, 1024), torch.randn(8, 4096)
    peak = peak_beyond(lambda: ops.grow_scores(x, gy, topology, 10_000))
    assert peak <= 1.25 * 4 * module.TILE + 10_000 * (24 + 2 * 20 + 40)
    assert peak < 4 * topology.numel / 6


def test_a_nan_in_an_early_tile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 5)
    topology, gy = Topology.from_flat(torch.tensor([7]), (4, 5)), torch.ones(1, 4)
    gy[0, 0] = float("nan")
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend), pytest.raises(ValueError, match="NaN"):
            ops.grow_scores(torch.ones(1, 5), gy, topology, 3)


@pytest.mark.parametrize("directed", [False, True])
def test_opcheck(directed: bool) -> None:
    topology = Topology.from_mask(random_mask((4, 3), 0.3).repeat_interleave(2, 0), granularity=2)
    best = (torch.full((5,), -1.0, dtype=torch.float64), torch.zeros(5, dtype=torch.int64), torch.zeros(5, 2))
    direction = torch.ones(4, 3) if directed else None
    arguments = (torch.randn(4, 3), topology.indptr, topology.cols, 4, 2, direction, *best)
    torch.library.opcheck(torch.ops.fedsparse.grow_scores, arguments)


T, _, X, _ = linear_operands(LINEARS["primes"], torch.float32)
GY = torch.ones(3, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.grow_scores(X[:, 1:], GY, T, 1), "x must have 11 channels"),
        (lambda: ops.grow_scores(X, GY[:, 1:], T, 1), "gy must have 7 channels"),
        (lambda: ops.grow_scores(X, GY[1:], T, 1), "x has batch 3, gy has 2"),
        (lambda: ops.grow_scores(X, GY, T, 1, direction=torch.zeros(7)), "direction must have shape"),
        (lambda: ops.grow_scores(X, GY, T, -1), "count must be at least 0"),
        (lambda: ops.grow_scores(X * float("nan"), GY, T, 1), "gradient is NaN"),
        (lambda: ops.grow_scores(X, GY.double(), T, 1), "gy must have the floating dtype"),
    ],
)
def test_bad_input_gets_one_sentence(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
