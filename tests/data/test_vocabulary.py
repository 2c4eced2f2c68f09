import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.data.vocabulary import BytePairs, Characters

TEXT = "ab ab abc cab\n" * 20 + "été 42 été! 漢字 𝄞 x_y"


def test_characters_are_numbered_in_order_and_zero_is_unknown() -> None:
    vocabulary = Characters.train("banana")
    assert len(vocabulary) == 4
    assert vocabulary.encode("abnz").tolist() == [1, 2, 3, 0]
    assert vocabulary.encode("abn").dtype == np.int32
    assert vocabulary.decode([2, 1, 0]) == "ba\ufffd"


def test_characters_of_nothing() -> None:
    assert Characters.train("").encode("ab").tolist() == [0, 0]
    assert Characters.train("a").encode("").tolist() == []


def test_the_first_merges_by_hand() -> None:
    """`aaab` four times, `ab` twice: (a, a) occurs 8 times and (a, b) 6; then (aa, a) and (a, b) 4 and 6."""
    a, b = ord("a"), ord("b")
    vocabulary = BytePairs.train("aaab!aaab!aaab!aaab!ab!ab", 258)
    assert vocabulary.merges[0] == (a, a)
    # After it aaab is aa a b: (a, b) still 6 times, (aa, a) 4 times.
    assert vocabulary.merges[1] == (a, b)
    assert vocabulary.encode("aaab").tolist() == [256, 257]
    assert vocabulary.encode("ba").tolist() == [b, a]


def test_ties_go_to_the_lower_pair_and_single_pairs_are_not_merged() -> None:
    vocabulary = BytePairs.train("xy xy ba ba q", 300)
    # " b", "ba" and "xy" occur twice, " x" and " q" once.
    assert vocabulary.merges == ((ord(" "), ord("b")), (ord("x"), ord("y")), (256, ord("a")))
    assert vocabulary.encode(" q").tolist() == [ord(" "), ord("q")]


def plain_merges(words: list[str], most: int) -> list[tuple[int, int]]:
    """Byte-pair training as its definition says, all pairs counted anew for every merge."""
    spelled = [list(word.encode()) for word in words]
    merges: list[tuple[int, int]] = []
    while len(merges) < most:
        counts: dict[tuple[int, int], int] = {}
        for tokens in spelled:
            for i in range(len(tokens) - 1):
                pair = (tokens[i], tokens[i + 1])
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        number = 256 + len(merges)
        merges.append(best)
        for tokens in spelled:
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == best:
                    tokens[i : i + 2] = [number]
                i += 1
    return merges


@settings(deadline=None, max_examples=60)
@given(words=st.lists(st.text("abcé", min_size=1, max_size=9), min_size=1, max_size=25), most=st.integers(1, 25))
def test_merges_are_those_of_the_definition(words: list[str], most: int) -> None:
    found = BytePairs.train("!".join(words), 256 + most)
    spelled = [part for i, word in enumerate(words) for part in (["!", word] if i else [word])]
    assert list(found.merges) == plain_merges(spelled, most)


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_byte_pairs_bring_back_every_text(text: str) -> None:
    """Also what was not in the training text, white space and signs included."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    for vocabulary in (BytePairs.train(TEXT, 300), BytePairs.train(text, 300), BytePairs(())):
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_byte_pairs_shorten_the_text_and_stay_in_range() -> None:
    vocabulary = BytePairs.train(TEXT, 300)
    tokens = vocabulary.encode(TEXT)
    assert len(tokens) < 0.5 * len(TEXT.encode())
    assert 0 <= tokens.min() <= tokens.max() < len(vocabulary) <= 300


def test_bytes_that_are_no_text_are_shown_as_replacement() -> None:
    assert BytePairs(()).decode([0xFF]) == "\ufffd"
    with pytest.raises(IndexError):
        BytePairs(()).decode([256])
