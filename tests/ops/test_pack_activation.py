"""pack_activation and relu: every back end against a plain sort, their sizes, and what they refuse."""

import pytest
import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.ops.blocked import from_blocked, to_blocked

RAW = torch.ops.fedsparse
BACKENDS = ["cpu", "dense", "reference"]

# shape: why
SHAPES = {
    "one entry": (3, 1),
    "less than a byte": (2, 5),
    "one word": (2, 64),
    "a word and one entry": (4, 65),
    "an image, no multiple of 8": (3, 3, 7, 9),
    "several words": (2, 8, 16, 16),
    "no sample": (0, 6),
    "no entry": (2, 0),
}
KINDS = {
    "normal": lambda x: x,
    "after a ReLU": torch.relu,
    "many ties": lambda x: (2 * x).round(),
    "all equal": lambda x: torch.full_like(x, -3),
    "zeros": torch.zeros_like,
    "tiny and huge": lambda x: x.sign() * torch.exp(60 * x.abs().clamp(max=1) - 50),
}


def sample(shape: tuple[int, ...], kind: str = "normal", dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return KINDS[kind](x).to(dtype)


def expected(x: Tensor, share: float) -> Tensor:
    """The round(share n) of largest magnitude of each sample, by a stable sort; zeros elsewhere."""
    kept = torch.zeros_like(x)
    for row, out in zip(x.flatten(1), kept.flatten(1)):
        count = min(len(row), max(1, round(share * len(row))))
        order = sorted(range(len(row)), key=lambda i: (-abs(float(row[i])), i))[:count]
        out[order] = row[order]
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", SHAPES)
def test_the_largest_of_each_sample_are_kept(reason: str, kind: str, dtype: torch.dtype, backend: str) -> None:
    x = sample(SHAPES[reason], kind, dtype)
    for share in (1e-6, 0.3, 0.5, 1.0):
        with ops.use_backend(backend):
            kept = ops.pack_activation(x, share)
            assert torch.equal(kept.unpack(), expected(x, share)), share
        nonzero = (expected(x, share) != 0).flatten(1).sum(1)
        assert kept.starts.diff().tolist() == nonzero.tolist(), "zeros are not stored"
        assert len(kept.values) == int(nonzero.sum())
        assert kept.bits.shape == (x.shape[0], (x.flatten(1).shape[1] + 7) // 8)


def test_back_ends_agree_to_the_bit(isa: str) -> None:
    x = sample((5, 4, 9, 9), "many ties")
    packed = []
    for backend in BACKENDS:
        with ops.use_backend(backend):
            packed.append(ops.pack_activation(x, 0.4, bfloat16=True))
    for other in packed[1:]:
        for name in ("bits", "values", "starts"):
            assert torch.equal(getattr(other, name), getattr(packed[0], name)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_values_are_those_of_torch(backend: str, isa: str) -> None:
    x = sample((3, 200), "tiny and huge")
    x[0, :3] = torch.tensor([float("inf"), float("nan"), 3.3895e38])
    with ops.use_backend(backend):
        kept = ops.pack_activation(x, 1.0, bfloat16=True)
        assert kept.values.dtype == torch.bfloat16
        assert torch.equal(kept.unpack().nan_to_num(7), x.bfloat16().float().nan_to_num(7))


def test_threads_do_not_change_a_bit() -> None:
    x, threads = sample((16, 8, 16, 16)), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(ops.pack_activation(x, 0.37))
    torch.set_num_threads(threads)
    assert torch.equal(found[0].bits, found[1].bits)
    assert torch.equal(found[0].values, found[1].values)


def test_what_is_kept_of_a_sample_does_not_depend_on_its_batch() -> None:
    x = sample((4, 100))
    x[1] *= 1e-6
    kept = ops.pack_activation(x, 0.2)
    assert kept.starts.diff().tolist() == [20, 20, 20, 20]
    assert torch.equal(ops.pack_activation(x[1:2], 0.2).unpack(), kept.unpack()[1:2])


def test_nan_is_the_largest_magnitude() -> None:
    x = torch.tensor([[1.0, float("nan"), float("-inf"), 2.0]])
    assert ops.pack_activation(x, 0.25).bits.tolist() == [[2]]
    assert ops.pack_activation(x, 0.5).bits.tolist() == [[6]]


def test_bytes() -> None:
    """1000 samples of 128 entries, a quarter kept: 16 bytes of bits, 32 values, 8 bytes of start each (and one more)."""
    x = sample((1000, 128))
    assert ops.pack_activation(x, 0.25).nbytes == 1000 * (16 + 32 * 4 + 8) + 8
    assert ops.pack_activation(x, 0.25, bfloat16=True).nbytes == 1000 * (16 + 32 * 2 + 8) + 8


def test_any_layout_of_the_input() -> None:
    x = sample((3, 4, 5, 6)).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.pack_activation(x, 0.5).unpack(), expected(x.contiguous(), 0.5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [float("inf"), 1.0])
@pytest.mark.parametrize("shape", [(3,), (8, 8), (2, 3, 7, 9), (1000, 100), (0,)])
def test_relu_is_that_of_torch(
    shape: tuple[int, ...], limit: float, dtype: torch.dtype, backend: str, isa: str
) -> None:
    x = sample(shape, dtype=dtype)
    if x.numel() > 2:
        x.view(-1)[:3] = torch.tensor([0.0, -0.0, 1.0])
    gy = sample(shape, dtype=dtype) + 5
    grads = []
    for apply in (lambda z: torch.nn.functional.hardtanh(z, 0.0, limit), lambda z: ops.relu(z, limit=limit)):
        z = x.clone().requires_grad_()
        with ops.use_backend(backend):
            y = apply(z)
            y.backward(gy)
        grads.append((y.detach(), z.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_hands_on_nan(backend: str) -> None:
    x = torch.full((70,), float("nan"), requires_grad=True)
    with ops.use_backend(backend):
        y = ops.relu(x)
        y.backward(torch.full((70,), 5.0))
    assert bool(y.isnan().all())
    assert x.grad is not None
    assert x.grad.tolist() == [5.0] * 70


def test_relu_in_place_and_twice_differentiable() -> None:
    x = sample((4, 5), dtype=torch.float64).requires_grad_()
    y = x * 1
    assert ops.relu(y, inplace=True) is y
    assert bool((y >= 0).all())
    assert torch.autograd.gradcheck(ops.relu, x)
    assert torch.autograd.gradgradcheck(lambda z: ops.relu(z).square(), x)


def test_opcheck() -> None:
    x = sample((3, 40))
    bits, values, starts = RAW.pack_activation(x, 10, False)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(RAW.unpack_activation.default, (bits, values, starts, 40), test_utils=tests)
    torch.library.opcheck(RAW.relu_bits.default, (x, 1.0), test_utils=tests)
    torch.library.opcheck(RAW.relu_gradient.default, (x, RAW.relu_bits(x, 1.0)), test_utils=tests)
    torch.library.opcheck(RAW.pack_activation.default, (x, 10, False), test_utils=("test_schema",))
    with torch._subclasses.FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()) as mode:
        fake = RAW.pack_activation(mode.from_tensor(x), 10, True)
    assert [t.dtype for t in fake] == [torch.uint8, torch.bfloat16, torch.int64]
    assert tuple(fake[0].shape) == tuple(bits.shape)
    assert tuple(fake[2].shape) == tuple(starts.shape)


def test_wrong_operands_are_named() -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], not 0"):
        ops.pack_activation(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match=r"x must be floats of shape \[B, \.\.\.\]"):
        ops.pack_activation(torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="only float32 is stored as bfloat16"):
        ops.pack_activation(torch.zeros(2, 3, dtype=torch.float64), 0.5, bfloat16=True)
    with pytest.raises(RuntimeError, match="count must be between 0 and 3, not 4"):
        RAW.pack_activation(torch.zeros(2, 3), 4, False)
    with pytest.raises(RuntimeError, match="bits must be uint8 with 2 entries"):
        RAW.relu_gradient(torch.zeros(9), torch.zeros(1, dtype=torch.uint8))


def test_a_bitmap_that_does_not_fit_its_values_is_refused() -> None:
    kept = ops.pack_activation(sample((2, 40)), 0.25)
    with pytest.raises(RuntimeError, match="sample 0 has 11 bits but 10 values"):
        RAW.unpack_activation(
            kept.bits | torch.tensor([~int(kept.bits[0, 0]) & -~int(kept.bits[0, 0])] + [0] * 4).byte(),
            kept.values,
            kept.starts,
            40,
        )
    with pytest.raises(RuntimeError, match="starts must rise from 0 to 19"):
        RAW.unpack_activation(kept.bits, kept.values[1:], kept.starts, 40)
    with pytest.raises(RuntimeError, match=r"bits must have shape \(B, 6\)"):
        RAW.unpack_activation(kept.bits, kept.values, kept.starts, 48)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 200])
@pytest.mark.parametrize("kept", [0.0, 0.03, 0.5, 1.0])
def test_nothing_is_lost_at_a_share_of_one_whatever_lies_beside(n: int, kept: float) -> None:
    """Rows lie side by side, so that one byte too many would show in the next; the smallest number is no zero."""
    generator = torch.Generator().manual_seed(n)
    x = torch.where(torch.rand(5, n, generator=generator) < kept, torch.randn(5, n, generator=generator), 0.0)
    x[2, n // 2] = 1e-45
    packed = ops.pack_activation(x, 1.0)
    assert torch.equal(packed.values, x[x != 0])
    assert torch.equal(packed.unpack(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 16, 19, 33])
def test_of_blocks_each_image_is_a_sample(batch: int, kind: str, dtype: torch.dtype) -> None:
    """The same entries as of the ordinary tensor; some blocks at a time too; nothing of lanes without an image."""
    x = sample((batch, 3, 7, 5), kind, dtype)
    blocks = to_blocked(x)
    blocks.permute(0, 4, 1, 2, 3).flatten(0, 1)[batch:] = 7.0
    for share in (1e-6, 0.3, 0.5):
        kept = ops.pack_activation(blocks, share, images=batch)
        assert torch.equal(from_blocked(kept.unpack(), batch), expected(x, share)), share
        assert len(kept.values) == int((expected(x, share) != 0).sum())
        whole = kept.unpack()
        assert torch.equal(kept.unpack(1, len(blocks)), whole[1:])
        assert torch.equal(kept.unpack(0, 1), whole[:1])
    if dtype == torch.float32:
        half = ops.pack_activation(blocks, 0.3, bfloat16=True, images=batch)
        assert half.values.dtype == torch.bfloat16
        assert torch.equal(from_blocked(half.unpack(), batch), expected(x, 0.3).bfloat16().float())


LARGE = KINDS | {
    "clipped": lambda x: (10 * x).clamp(0, 6),
    "few": lambda x: torch.relu(x - 2),
    "one channel larger": lambda x: x * torch.tensor([100.0] + [1.0] * 4)[:, None, None],
}


@pytest.mark.parametrize("kind", LARGE)
def test_of_large_blocks_each_image_is_a_sample_in_every_instruction_set(kind: str, isa: str) -> None:
    """5000 lines: thresholds are looked for by a sample of them, or where that misleads, among all."""
    x = LARGE[kind](torch.randn(18, 5, 40, 25, generator=torch.Generator().manual_seed(2)))
    blocks = to_blocked(x)
    blocks.permute(0, 4, 1, 2, 3).flatten(0, 1)[18:] = 7.0
    for share in (1e-6, 0.02, 0.2, 0.9, 0.9999):
        for half in (False, True):
            kept = ops.pack_activation(blocks, share, half, images=18)
            with ops.use_backend("reference"):
                wanted = ops.pack_activation(x, share, half)
                unpacked = wanted.unpack()
            assert torch.equal(from_blocked(kept.unpack(), 18), unpacked), (share, half)
            assert len(kept.values) == len(wanted.values)


def test_a_sample_that_misleads_changes_nothing() -> None:
    """Every line that the sample looks at is far smaller than all others, or far larger."""
    lines, looked = 4096, torch.arange(1024)
    places = looked * 4 + ((looked * 2654435761) >> 12) % 4
    for factor in (1e-3, 1e3):
        x = torch.randn(16, lines, generator=torch.Generator().manual_seed(3))
        x[:, places] *= factor
        kept = ops.pack_activation(to_blocked(x.reshape(16, 1, 64, 64)), 0.2, images=16)
        assert torch.equal(from_blocked(kept.unpack(), 16).flatten(1), ops.pack_activation(x, 0.2).unpack())


def test_nan_in_large_blocks_is_the_largest_magnitude() -> None:
    x = torch.randn(16, 1, 64, 64, generator=torch.Generator().manual_seed(4))
    x[3, 0, 5, 6] = float("nan")
    unpacked = from_blocked(ops.pack_activation(to_blocked(x), 1e-6, images=16).unpack(), 16)
    assert bool(unpacked[3, 0, 5, 6].isnan())
    assert int((unpacked != 0).sum()) == 16


def test_by_hand_in_blocks() -> None:
    """Two images of four entries, half of each kept: 3 -1 0 2 keeps 3 2; 1 -5 1 1 keeps -5 and the first 1."""
    x = torch.tensor([[3.0, -1.0, 0.0, 2.0], [1.0, -5.0, 1.0, 1.0]]).reshape(2, 1, 2, 2)
    kept = ops.pack_activation(to_blocked(x), 0.5, images=2)
    assert from_blocked(kept.unpack(), 2).flatten(1).tolist() == [[3.0, 0.0, 0.0, 2.0], [1.0, -5.0, 0.0, 0.0]]
    assert kept.values.tolist() == [3.0, 1.0, -5.0, 2.0]
