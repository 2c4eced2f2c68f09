import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import peak_beyond

from fedsparse.ops import topk, topk_segmented, use_backend

SCORES = st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0, 2.0, float("inf"), float("-inf")]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.data())
def test_the_first_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    """Sorted by falling score, then by index, the first `count`: Python's sort is the oracle."""
    count = data.draw(st.integers(0, len(scores)))
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    found = topk(torch.tensor(scores), count)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_ties_go_to_the_lower_index() -> None:
    assert topk(torch.tensor([1, 2, 2, 2, 0]), 2).tolist() == [1, 2]
    assert topk(torch.zeros(1000), 3).tolist() == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SCORES, st.floats(0, 1)), max_size=5))
def test_segments_are_chosen_apart(segments: list[tuple[list[float], float]]) -> None:
    sizes = [len(scores) for scores, _ in segments]
    counts = [int(share * size) for (_, share), size in zip(segments, sizes)]
    whole = torch.tensor([score for scores, _ in segments for score in scores])
    expected, start = [], 0
    for (scores, _), count in zip(segments, counts):
        expected += [start + i for i in topk(torch.tensor(scores), count).tolist()]
        start += len(scores)
    assert topk_segmented(whole, sizes, counts).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 1000, 10**7], ids=["all ties", "many ties", "few ties"])
def test_the_kernel_is_the_reference_to_the_index(dtype: torch.dtype, spread: int) -> None:
    """Random magnitudes and signs over many exponents, so that every byte of a key decides somewhere."""
    generator = torch.Generator().manual_seed(0)
    sizes, counts = [5000, 0, 1, 3000], [1234, 0, 1, 2999]
    scores = torch.randint(-spread, spread + 1, (8001,), generator=generator).to(dtype)
    scores *= 10.0 ** torch.randint(-12, 13, (8001,), generator=generator)
    found = topk_segmented(scores, sizes, counts)
    with use_backend("reference"):
        assert torch.equal(found, topk_segmented(scores, sizes, counts))


def test_no_copy_of_the_scores_is_made() -> None:
    """A million float32 scores are 4 MB; beyond them live the result, 8 bytes an index, and the byte an element of the
    check for NaN."""
    scores = torch.randn(1_000_000)
    assert peak_beyond(lambda: topk(scores, 10_000)) <= 1_000_000 + 8 * 10_000 + 4096


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.fedsparse.topk, (torch.randn(7), [3, 4], [1, 2]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: topk(torch.zeros(2, 2), 1), "one dimension"),
        (lambda: topk(torch.zeros(2), 3), "count must be between 0 and 2"),
        (lambda: topk(torch.zeros(2), -1), "count must be between 0 and 2"),
        (lambda: topk(torch.tensor([0.0, float("nan")]), 1), "NaN"),
        (lambda: topk_segmented(torch.zeros(3), [1, 1], [1, 1]), "add up to 3"),
        (lambda: topk_segmented(torch.zeros(3), [1, 2], [1]), "equally long"),
        (lambda: topk_segmented(torch.zeros(3), [1, 2], [2, 1]), "count must be between 0 and 1"),
    ],
)
def test_bad_input_gets_one_sentence(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
