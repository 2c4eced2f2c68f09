from pathlib import Path

import numpy as np
import pytest
import torch

from fedsparse import data
from fedsparse.data import DataError, Text
from fedsparse.data.vocabulary import Characters


def sentences(seed: int, count: int) -> str:
    """Text of a small made-up grammar."""
    rng = np.random.default_rng(seed)
    who, does, what = ("the cat", "a dog", "the old bird"), ("sees", "likes", "finds"), ("a tree", "the house", "rain")
    return "".join(f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}.\n" for _ in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    for seed, name in enumerate(("b.txt", "a.txt", "c.txt")):
        (path / name).write_text(sentences(seed, 40 + 30 * seed))
    (path / "notes.md").write_text("not read")
    return path


def test_windows_follow_one_another_and_targets_are_one_later(tmp_path: Path) -> None:
    """100 characters: 90 train, 10 test. Windows of 8 need 9: 11 windows, and one in the test."""
    text = "".join(chr(97 + i % 7) for i in range(100))
    (tmp_path / "one.txt").write_text(text)
    train, test = data.load_text(f"text:{tmp_path / 'one.txt'}", context=8)
    assert (len(train), len(test), train.classes, train.context) == (11, 1, 8, 8)
    x, y = train.batch(np.array([0, 10, 0]))
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (3, 8)
    assert train.vocabulary.decode(x[1].numpy()) == text[80:88]
    assert train.vocabulary.decode(y[1].numpy()) == text[81:89]
    assert train.vocabulary.decode(test.batch(torch.tensor([0]))[1][0].numpy()) == text[91:99]


def test_files_are_labels_and_natural_clients_in_the_order_of_names(folder: Path) -> None:
    train, test = data.load_text(f"text:{folder}", context=16)
    for split in (train, test):
        assert torch.equal(split.clients, split.labels)
        assert split.labels.unique().tolist() == [0, 1, 2]
    first = train.vocabulary.decode(train.batch(np.array([0]))[0][0].numpy())
    assert first == (folder / "a.txt").read_text()[:16]
    parts = data.partition("natural", train.labels.numpy(), 3, np.random.default_rng(0), natural=train.clients.numpy())
    assert [len(part) for part in parts] == train.labels.bincount().tolist()


def test_no_window_crosses_files(folder: Path) -> None:
    train, _ = data.load_text(f"text:{folder}", context=16)
    texts = [(folder / f"{name}.txt").read_text() for name in "abc"]
    x, y = train.batch(np.arange(len(train)))
    for row, last, label in zip(x, y[:, -1:], train.labels):
        assert train.vocabulary.decode([*row.tolist(), *last.tolist()]) in texts[label]


def test_the_vocabulary_is_that_of_the_train_split(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("ab" * 45 + "zzzzzzzzzz")
    train, test = data.load_text(f"text:{tmp_path / 'one.txt'}", context=4)
    assert train.classes == 3
    assert not test.batch(np.arange(len(test)))[0].any()


def test_byte_pairs_have_the_asked_size_and_are_repeatable(folder: Path) -> None:
    train, test = data.load_text(f"text:{folder}", context=8, vocab=280)
    again, _ = data.load_text(f"text:{folder}", context=8, vocab=280)
    assert train.classes == test.classes == 280
    assert torch.equal(train.tokens, again.tokens)
    assert len(train) < len(data.load_text(f"text:{folder}", context=8)[0])


def test_train_limit_keeps_the_first_of_each_file(folder: Path) -> None:
    train, test = data.load_text(f"text:{folder}", context=16, train_limit=7)
    whole, whole_test = data.load_text(f"text:{folder}", context=16)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(test) == len(whole_test)
    assert torch.equal(train.batch(np.array([3]))[0], whole.batch(np.flatnonzero(whole.labels == 1)[:1])[0])


def test_a_relative_path_is_found_below_the_roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(data.load_text("text:corpus", root=folder.parent)[0])
    monkeypatch.setenv("FEDSPARSE_DATA", str(folder.parent))
    assert len(data.load_text("text:corpus/a.txt")[0])


def test_text_moves_with_all_its_tensors(folder: Path) -> None:
    train, _ = data.load_text(f"text:{folder}", context=8)
    moved = train.to("cpu")
    assert (moved.vocabulary, moved.context, moved.name) == (train.vocabulary, train.context, train.name)
    for ours, theirs in zip(moved.batch(np.arange(5)), train.batch(np.arange(5))):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "text:nowhere"}, r"'text:nowhere' was not found: none of nowhere or .data/nowhere is a text file"),
        ({"name": "text:"}, "'text:' is not text: give text:PATH"),
        ({"name": "digits"}, "'digits' is not text: give text:PATH"),
        ({"context": 0}, "context must be at least 1 token, not 0"),
        ({"vocab": 256}, "vocab must be more than the 256 bytes, not 256"),
        ({"train_limit": 0}, "train_limit must be at least 1"),
        ({"context": 5000}, "no file's train split has the 5001 tokens of one sample .* smaller context or more text"),
        ({"context": 300}, "no file's test split has the 301 tokens"),
    ],
)
def test_bad_asks_get_one_sentence(folder: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        data.load_text(**{"name": f"text:{folder}", **arguments})


def test_what_is_not_utf8_or_not_images_is_named(tmp_path: Path, folder: Path) -> None:
    (folder / "d.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"d\.txt is not text in UTF-8 \(byte 3\)"):
        data.load_text(f"text:{folder}")
    with pytest.raises(DataError, match="is text and not images: use load_text"):
        data.load(f"text:{folder}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"folder of \.txt files"):
        data.load_text(f"text:{tmp_path / 'empty'}")


def test_augmentation_is_refused(folder: Path) -> None:
    train, _ = data.load_text(f"text:{folder}", context=8)
    with pytest.raises(DataError, match="which has no augmentation"):
        train.batch(np.array([0]), torch.Generator())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": torch.zeros(9)}, "tokens must be int32"),
        ({"tokens": torch.full((9,), 3, dtype=torch.int32)}, r"tokens must lie in 0\.\.2"),
        ({"starts": torch.tensor([5])}, r"starts must lie in 0\.\.4"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be int64 of shape \[1\]"),
        ({"context": 0}, "context must be at least 1"),
    ],
)
def test_fields_that_contradict_are_refused(change: dict, sentence: str) -> None:
    fields = {
        "name": "toy",
        "tokens": torch.zeros(9, dtype=torch.int32),
        "starts": torch.tensor([4]),
        "labels": torch.tensor([0]),
        "vocabulary": Characters("ab"),
        "context": 4,
    }
    assert len(Text(**fields)) == 1
    with pytest.raises(DataError, match=sentence):
        Text(**{**fields, **change})
