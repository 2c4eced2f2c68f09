"""Strips in bfloat16 on matrix tiles: emulated everywhere, and on the processor's own where it has them."""

from pathlib import Path

import pytest
import torch
from blocked_cases import plain, poisoned
from op_cases import Conv, OpLog, conv_operands, parametrize, tile_kinds
from torch import Tensor

from fedsparse import ops
from fedsparse.ops import dispatch
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

RAW = torch.ops.fedsparse
BF16 = torch.bfloat16


def strips(**changes) -> Conv:
    return Conv(**({"N": 32, "C": 6, "granularity": 16} | changes))


CASES = {
    "one image": strips(B=1),
    "less than a block": strips(B=3),
    "one full block": strips(B=16, granularity=32),
    "one image in the last block": strips(B=17),
    "four blocks": strips(B=64, H=4, W=4, granularity=32),
    "strips of 32": strips(N=64, granularity=32),
    "strips of 64 as pairs of 32": strips(N=64, granularity=64),
    "width with every remainder": strips(H=3, W=31),
    "width with every remainder, strips of 32": strips(H=2, W=31, granularity=32),
    "map of one pixel": strips(H=1, W=1),
    "map of 4 x 4": strips(H=4, W=4, C=20),
    "map of 7 x 7": strips(H=7, W=7),
    "pointwise": strips(C=40, kernel=(1, 1), padding=(0, 0)),
    "pointwise, stride 2": strips(C=40, kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "stride 2": strips(stride=(2, 2)),
    "stride 2, even map": strips(stride=(2, 2), H=8, W=8, B=17, granularity=32),
    "stride 3, last pixels unread": strips(stride=(3, 3), padding=(0, 0), H=10, W=10),
    "kernel 5": strips(kernel=(5, 5), padding=(2, 2)),
    "kernel 7": strips(kernel=(7, 7), padding=(3, 3), granularity=32),
    "kernel 7, stride 2": strips(kernel=(7, 7), padding=(3, 3), stride=(2, 2), H=15, W=16, C=3),
    "no padding": strips(padding=(0, 0)),
    "padding beyond the kernel": strips(padding=(4, 3)),
    "dilation and stride": strips(dilation=(2, 3), padding=(2, 3), stride=(2, 2)),
    "rectangular everything": strips(kernel=(3, 2), padding=(2, 0), stride=(1, 2), dilation=(1, 3)),
    "dense": strips(density=1.0),
    "dense, strips of 32": strips(density=1.0, granularity=32),
    "dense single weights": strips(density=1.0, granularity=1),
    "one percent": strips(N=64, C=16, density=0.01),
    "nothing active": strips(density=0.0),
    "one active strip": strips(density="one"),
    "one active strip of 32": strips(N=64, density="one", granularity=32),
    "empty rows and columns": strips(N=64, density="gaps"),
    "exactly a unit of entries": strips(C=32, kernel=(1, 1), padding=(0, 0), density=1.0),
    "a unit and one entry": strips(C=33, kernel=(1, 1), padding=(0, 0), density=1.0, granularity=32),
    "several runs of units": strips(C=80, H=4, W=5, density=0.9),
    "several runs of units, strips of 32": strips(C=80, H=3, W=4, density=0.9, granularity=32),
    "several bands of rows": strips(C=64, N=16, H=32, W=32, density=0.02),
}


def operands(case: Conv, whole: bool = False) -> tuple[Topology, Tensor, Tensor, Tensor, Tensor]:
    """(topology, values, x, bias, gradient of y) in bfloat16; `whole` has integers from -2 to 2."""
    topology, *given = conv_operands(case, torch.float64)
    high, wide = ops.algebra.output_size((case.H, case.W), (case.kernel, case.stride, case.padding, case.dilation))
    generator = torch.Generator().manual_seed(2)
    given.append(torch.randn(case.B, case.N, high, wide, generator=generator, dtype=torch.float64))
    return topology, *((t.round().clamp(-2, 2) if whole else t).to(BF16) for t in given)


def run(case: Conv, whole: bool = False) -> list[Tensor]:
    """[y, dvalues, dx, dbias] in blocks, with NaN in the lanes without an image."""
    topology, values, x, bias, gy = operands(case, whole)
    blocks = poisoned(x).requires_grad_()
    values.requires_grad_(), bias.requires_grad_()
    with ops.use_backend("cpu"):
        y = ops.blocked_conv2d(values, topology, blocks, case.B, bias, **case.geometry)
        dvalues, dx, dbias = torch.autograd.grad(y, (values, blocks, bias), poisoned(gy))
    return [plain(y.detach(), case.B), dvalues, plain(dx, case.B), dbias]


def exact(case: Conv, whole: bool = False, magnitudes: bool = False) -> list[Tensor]:
    """The same in float64; of the operands' magnitudes, what roundings are relative to."""
    topology, *given = operands(case, whole)
    values, x, bias, gy = ((t.double().abs() if magnitudes else t.double()).requires_grad_() for t in given)
    with ops.use_backend("reference"):
        y = ops.conv2d(values, topology, x, bias, **case.geometry)
        return [y.detach(), *torch.autograd.grad(y, (values, x, bias), gy.detach())]


@pytest.fixture(scope="module")
def expected() -> dict[Conv, tuple[list[Tensor], list[Tensor]]]:
    return {}


@parametrize(CASES)
def test_within_one_rounding_to_bfloat16(case: Conv, tiles: str, expected: dict) -> None:
    """A sum of n products in float32 is off by n 2^-24 of the sum of magnitudes, its rounding by 2^-8 of itself."""
    if case not in expected:
        expected[case] = exact(case), exact(case, magnitudes=True)
    images = case.B * case.H * case.W * case.kernel[0] * case.kernel[1]
    terms = (case.C * case.kernel[0] * case.kernel[1], images, case.N * case.kernel[0] * case.kernel[1], images)
    for name, found, true, size, n in zip(("y", "values", "x", "bias"), run(case), *expected[case], terms):
        assert found.dtype == BF16
        assert found.shape == true.shape, name
        error = (found.double() - true).abs()
        assert bool((error <= 2**-8 * true.abs() + 1.01 * n * 2**-24 * size).all()), name


@parametrize(CASES)
def test_integers_to_the_bit(case: Conv, tiles: str) -> None:
    """Their sums are exact in float32, so that the result is the true one, rounded once."""
    for name, found, true in zip(("y", "values", "x", "bias"), run(case, whole=True), exact(case, whole=True)):
        assert float(true.abs().max() if true.numel() else 0) < 2**24
        assert torch.equal(found, true.float().to(BF16)), name


@pytest.mark.skipif(len(tile_kinds()) < 2, reason="no AMX on this CPU")
@parametrize(CASES)
def test_the_processor_does_as_the_emulation(case: Conv) -> None:
    results = {}
    for kind in tile_kinds():
        RAW.set_tiles(kind)
        results[kind] = run(case)
    RAW.set_tiles("")
    for a, b in zip(*results.values()):
        assert torch.equal(a, b)


@parametrize({reason: CASES[reason] for reason in ("one full block", "four blocks", "several bands of rows")})
def test_equal_bits_for_any_number_of_threads(case: Conv, tiles: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case)
        torch.set_num_threads(3)
        for a, b in zip(alone, run(case)):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@parametrize(
    {reason: CASES[reason] for reason in ("one image in the last block", "stride 2, even map", "nothing active")}
)
def test_ordinary_tensors_give_the_same(case: Conv, tiles: str) -> None:
    topology, values, x, bias, gy = operands(case)
    given = [t.requires_grad_() for t in (values, x, bias)]
    with ops.use_backend("cpu"):
        y = ops.conv2d(values, topology, x, bias, **case.geometry)
        found = [y.detach(), *torch.autograd.grad(y, given, gy)]
    for a, b in zip(found[:3], run(case)):
        assert torch.equal(a, b)
    assert torch.allclose(found[3].float(), run(case)[3].float(), rtol=2**-7)


def lines(batch: int, pixels: tuple[int, int]) -> Tensor:
    return torch.arange(batch * 3 * pixels[0] * pixels[1]).reshape(batch, 3, *pixels).bitwise_and(255).to(BF16)


@pytest.mark.parametrize("batch", [1, 3, 16, 17, 64])
@pytest.mark.parametrize("pixels", [(1, 1), (4, 8), (3, 11), (5, 13)])
def test_layout(batch: int, pixels: tuple[int, int], tiles: str) -> None:
    """There and back; the lanes without an image hold zeros or nothing that matters."""
    x = lines(batch, pixels)
    blocks = ops.to_blocked(x)
    assert torch.equal(blocks, poisoned(x).nan_to_num())
    assert torch.equal(ops.from_blocked(poisoned(x), batch), x)
    assert torch.equal(RAW.blocked_sum(poisoned(x), batch), x.double().sum((0, 2, 3)).to(BF16))


@parametrize({reason: CASES[reason] for reason in ("less than a block", "stride 2", "nothing active")})
def test_opcheck(case: Conv, tiles: str) -> None:
    t, values, x, bias, gy = operands(case)
    geometry = [list(pair) for pair in (case.kernel, case.stride, case.padding, case.dilation)]
    blocks, grads = ops.to_blocked(x), ops.to_blocked(gy)
    torch.library.opcheck(RAW.to_blocked, (x,))
    torch.library.opcheck(RAW.from_blocked, (blocks, case.B))
    torch.library.opcheck(RAW.blocked_sum, (blocks, case.B))
    torch.library.opcheck(RAW.blocked_conv2d, (values, t.indptr, t.cols, t.granularity, blocks, bias, *geometry))
    torch.library.opcheck(RAW.blocked_conv2d_input, (values, *Index.of(t), grads, [case.H, case.W], *geometry))
    index = (t.indptr, t.cols, t.granularity)
    torch.library.opcheck(RAW.blocked_conv2d_weight, (*index, grads, blocks, case.B, *geometry))


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RAW.tile_kinds().endswith("emulated, none")
    RAW.set_tiles("")
    assert RAW.tiles() == ("amx" if "amx" in tile_kinds() else "none")
    with pytest.raises(RuntimeError, match="kind of tiles is 'mma', but this machine runs: .*emulated, none"):
        RAW.set_tiles("mma")
    monkeypatch.setenv("FEDSPARSE_TILES", "emulated")
    RAW.set_tiles("")
    assert ops.compiled()["matrix_tiles"] == "emulated"
    monkeypatch.setenv("FEDSPARSE_TILES", "mma")
    RAW.set_tiles("")
    with pytest.raises(RuntimeError, match="FEDSPARSE_TILES is 'mma'"):
        RAW.tiles()
    monkeypatch.undo()
    RAW.set_tiles("")


def test_without_tiles_bfloat16_is_dense_or_refused() -> None:
    topology, values, x, bias, _ = operands(strips())
    RAW.set_tiles("none")
    try:
        y = ops.conv2d(values, topology, x, bias, padding=1)
        with ops.use_backend("dense"):
            assert torch.equal(y, ops.conv2d(values, topology, x, bias, padding=1))
        blocks = ops.blocked_conv2d(values, topology, ops.to_blocked(x), 3, bias, padding=1)
        assert torch.equal(ops.from_blocked(blocks, 3), y)
        with dispatch.dense_passes(False):
            ops.blocked_conv2d(values, topology, ops.to_blocked(x), 3, bias, padding=1)
        with ops.use_backend("cpu"), pytest.raises(RuntimeError, match="amx-tile and amx-bf16, or FEDSPARSE_TILES"):
            ops.conv2d(values, topology, x, bias, padding=1)
    finally:
        RAW.set_tiles("")


def test_dense_runs_until_measured(tiles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPARSE_CACHE", str(tmp_path))
    topology, values, x, _, _ = operands(strips(B=16))
    where = (Index.of(topology), ((3, 3), (1, 1), (1, 1), (1, 1)), (9, 11), 16, BF16)
    work = dispatch.pass_of("conv2d", "product", *where)
    assert str(dispatch.choose(work)) == "dense (not measured)"
    with ops.measuring():
        ops.conv2d(values, topology, x, padding=1)
    assert set(dispatch.choose(work).times) == {"cpu", "dense"}
    with dispatch.dense_passes(False):
        sparse = ops.conv2d(values, topology, x, padding=1)
    with ops.use_backend("cpu"):
        assert torch.equal(sparse, ops.conv2d(values, topology, x, padding=1))


def test_autocast(tiles: str) -> None:
    """float32 operands, cast once a pass; float32 gradients of what the cast operands give."""
    topology, values, x, bias, gy = (t.float() if isinstance(t, Tensor) else t for t in operands(strips()))
    given = [t.requires_grad_() for t in (values, x, bias)]
    log = OpLog()
    with dispatch.dense_passes(False), log:
        with torch.autocast("cpu", BF16):
            y = ops.conv2d(values, topology, x, bias, padding=1)
        gradients = torch.autograd.grad(y, given, gy.to(BF16))
    assert {"blocked_conv2d", "blocked_conv2d_input", "blocked_conv2d_weight"} <= log.names
    assert not {"convolution", "convolution_backward", "unpack"} & log.names
    assert y.dtype == BF16
    for found, expected in zip((y, *gradients[:2]), run(strips())):
        assert torch.equal(found, expected.to(found.dtype))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_single_weights_are_refused_by_name(tiles: str) -> None:
    topology, values, x, bias, _ = operands(strips(granularity=8))
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match="16 or 32 output channels share their columns"):
        ops.conv2d(values, topology, x, bias, padding=1)
    assert ops.conv2d(values, topology, x, bias, padding=1).dtype == BF16


def test_a_gradient_in_parts_is_refused(tiles: str) -> None:
    t, values, x, _, gy = operands(strips())
    geometry = [[3, 3], [1, 1], [1, 1], [1, 1]]
    with pytest.raises(RuntimeError, match="rounded to bfloat16"):
        RAW.blocked_conv2d_weight_(values, t.indptr, t.cols, 16, ops.to_blocked(gy), ops.to_blocked(x), 3, *geometry)
