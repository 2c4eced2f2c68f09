import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsparse.data import DataError, Dataset, crop_flip
from fedsparse.data.dataset import moments
from fedsparse.data.resize import recolour, resize


def random_set(dtype: torch.dtype = torch.uint8, count: int = 20) -> Dataset:
    draws = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 3, 8, 8), generator=draws, dtype=torch.uint8)
    if dtype == torch.float32:
        images = images / 255
    return Dataset("random", images, torch.arange(count) % 7, 7, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batch_is_normalised_per_channel(dtype: torch.dtype) -> None:
    data = random_set(dtype)
    index = torch.tensor([4, 0, 4, 19])
    images, labels = data.batch(index)
    unit = 255 if dtype == torch.uint8 else 1
    mean = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.3], dtype=torch.float64).view(3, 1, 1)
    expected = (data.images[index].double() / unit - mean) / std
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), expected, atol=1e-6, rtol=1e-6)
    assert labels.tolist() == [4, 0, 4, 19 % 7]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batch_leaves_the_stored_images_alone(dtype: torch.dtype) -> None:
    data = random_set(dtype)
    before = data.images.clone()
    data.batch(torch.arange(20), torch.Generator().manual_seed(1))
    data.batch(torch.arange(20))
    assert torch.equal(data.images, before)


def test_numpy_and_tensor_indices_give_the_same_batch() -> None:
    data = random_set()
    index = np.array([3, 1, 2], dtype=np.int32)
    index.flags.writeable = False
    assert torch.equal(data.batch(index)[0], data.batch(torch.tensor([3, 1, 2]))[0])


def test_an_index_outside_the_set_is_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        random_set().batch(torch.tensor([20]))


def test_an_empty_batch_keeps_its_shape() -> None:
    images, labels = random_set().batch(np.array([], dtype=np.int64))
    assert images.shape == (0, 3, 8, 8)
    assert labels.shape == (0,)


def test_augmentation_depends_on_the_generator_alone() -> None:
    data = random_set()
    index = torch.arange(20)
    first = data.batch(index, torch.Generator().manual_seed(5))[0]
    torch.manual_seed(99)
    again = data.batch(index, torch.Generator().manual_seed(5))[0]
    other = data.batch(index, torch.Generator().manual_seed(6))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crop_flip_gives_windows_of_the_padded_image() -> None:
    """At 8 x 8 the border is 1 pixel: 3 x 3 windows, flipped or not, 18 possible results an image."""
    images = random_set(count=400).images
    out = crop_flip(images, torch.Generator().manual_seed(0))
    padded = F.pad(images, (1, 1, 1, 1))
    seen = set()
    for image, result in zip(padded, out):
        matches = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            if torch.equal(result, _window(image, top, left, flip))
        ]
        assert matches
        seen.update(matches)
    assert len(seen) == 18


def _window(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    window = image[:, top : top + 8, left : left + 8]
    return window.flip(2) if flip else window


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": torch.zeros(20, 3, 8)}, "images must be uint8 or float32"),
        ({"images": torch.zeros(20, 3, 8, 8, dtype=torch.float64)}, "images must be uint8 or float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, r"labels must be int64 of shape \[20\]"),
        ({"labels": torch.zeros(20, dtype=torch.int32)}, "labels must be int64"),
        ({"labels": torch.full((20,), 7)}, r"labels must lie in 0\.\.6"),
        ({"labels": torch.full((20,), -1)}, r"labels must lie in 0\.\.6"),
        ({"mean": (0.5,)}, "mean and std need 3 numbers"),
        ({"std": (0.2, 0.2, 0.0)}, "every std above 0"),
    ],
)
def test_contradicting_fields_are_refused(change: dict, sentence: str) -> None:
    good = random_set()
    fields = {name: getattr(good, name) for name in ("name", "images", "labels", "classes", "mean", "std")}
    with pytest.raises(DataError, match=sentence):
        Dataset(**{**fields, **change})


def test_moments_match_float64_over_several_chunks() -> None:
    images = random_set(count=50).images
    mean, std = moments(images, chunk=7)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_gets_std_one() -> None:
    assert moments(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)) == ((pytest.approx(0.2),), (1.0,))


def test_resize_keeps_constants_corners_and_orientation() -> None:
    """Bilinear doubling of a 2 x 2 image repeats its corners exactly, at any chunk."""
    images = torch.tensor([[0, 80], [160, 240]], dtype=torch.uint8).view(1, 1, 2, 2).repeat(5, 1, 1, 1)
    out = resize(images, 4, chunk=2)
    assert out.dtype == torch.uint8
    assert out.shape == (5, 1, 4, 4)
    assert out[4, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 80, 160, 240]
    # Sample centres lie at 1/4 and 3/4 between two pixels: 0 + 80/4, 0 + 3 * 80/4.
    assert out[0, 0, 0].tolist() == [0, 20, 60, 80]


def test_shrinking_averages() -> None:
    """Halving with antialias weighs both neighbours: no pixel of a fine chequerboard is lost."""
    board = (torch.arange(16).view(1, 1, 1, 16) % 2 * 200).expand(1, 1, 16, 16).to(torch.uint8)
    inner = resize(board, 8)[0, 0, 2:-2, 2:-2]
    assert int((inner.int() - 100).abs().max()) <= 1


def test_recolour() -> None:
    grey = torch.tensor([[[[7]]]], dtype=torch.uint8)
    assert recolour(grey, 3).flatten().tolist() == [7, 7, 7]
    # 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1
    primaries = (torch.eye(3) * 255).to(torch.uint8).view(3, 3, 1, 1)
    assert recolour(primaries, 1).flatten().tolist() == [76, 150, 29]
