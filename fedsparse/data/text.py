"""Text for next-token prediction: `text:PATH`, a file or a folder of .txt files in UTF-8.

Of every file the last tenth of the characters is the test, the rest the train split. The vocabulary is made from the
train split. A sample is a window of `context` tokens and the same window one token later; windows follow one another
without overlap, within one file, and tokens at a file's end that fill no window are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from .augment import sent
from .samples import DataError
from .source import listing
from .vocabulary import BYTES, BytePairs, Characters, Vocabulary

TEST_SHARE = 0.1
CONTEXT = 64


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of tokens, the whole text in memory.

    Args:
        name: what `load` was asked for.
        tokens: int32 [total], each in 0..classes-1, the files one after the other.
        starts: int64 [n], where in `tokens` each sample starts; context + 1 tokens follow.
        labels: int64 [n], the file of each sample, numbered from 0 in the order of names.
        vocabulary: of the tokens; its length is the number of classes.
        context: tokens of a sample.

    Raises:
        DataError: the fields contradict one another.
    """

    name: str
    tokens: Tensor = field(repr=False)
    starts: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    context: int

    def __post_init__(self) -> None:
        if self.tokens.dtype != torch.int32 or self.tokens.ndim != 1:
            raise DataError(f"{self.name}: tokens must be int32 of shape [total], not {self.tokens.dtype}")
        for what, column in (("starts", self.starts), ("labels", self.labels)):
            if column.dtype != torch.int64 or column.shape != (len(self.starts),):
                raise DataError(f"{self.name}: {what} must be int64 of shape [{len(self.starts)}]")
        if self.context < 1:
            raise DataError(f"{self.name}: context must be at least 1 token, not {self.context}")
        last = len(self.tokens) - self.context - 1
        if len(self) and not 0 <= int(self.starts.min()) <= int(self.starts.max()) <= last:
            raise DataError(f"{self.name}: starts must lie in 0..{last}")
        if len(self.tokens) and not 0 <= int(self.tokens.min()) <= int(self.tokens.max()) < self.classes:
            raise DataError(f"{self.name}: tokens must lie in 0..{self.classes - 1}")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    @property
    def clients(self) -> Tensor:
        """A file is a natural client."""
        return self.labels

    def batch(self, index: Tensor | np.ndarray, augment: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and next tokens of some samples.

        Args:
            index: int [b], positions in the set, repeats allowed.
            augment: must be None.

        Returns:
            int64 [b, context] twice; the second is the first, one token later.

        Raises:
            DataError: augmentation is asked for, which text has not.
        """
        if augment is not None:
            raise DataError(f"{self.name} is text, which has no augmentation")
        where = index if isinstance(index, Tensor) else torch.from_numpy(np.array(index, dtype=np.int64))
        starts = self.starts.index_select(0, sent(where, self.starts.device))
        steps = torch.arange(self.context + 1, device=starts.device)
        window = self.tokens[starts[:, None] + steps].long()
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of tokens, starts and labels."""
        return self.tokens.nbytes + self.starts.nbytes + self.labels.nbytes

    def to(self, device: torch.device | str) -> Text:
        """The same set with its tensors on a device; batches then come from there."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "starts", "labels")}
        return replace(self, **moved)


def find_text(path: str, roots: Sequence[Path]) -> list[Path]:
    """The files that `text:path` means: the path as given, else below the first root that has it, sorted by name.

    Raises:
        DataError: no such file, or a folder without .txt files.
    """
    given = Path(path).expanduser()
    candidates = [given, *([] if given.is_absolute() else [root / given for root in roots])]
    for candidate in candidates:
        if candidate.is_file():
            return [candidate]
        if candidate.is_dir():
            files = sorted(file for file in candidate.iterdir() if file.suffix == ".txt" and file.is_file())
            if files:
                return files
    raise DataError(
        f"data set 'text:{path}' was not found: none of {listing(candidates)} is a text file or a folder of .txt files"
    )


def read_text(
    name: str, files: Sequence[Path], context: int | None, vocab: int | None, train_limit: int | None
) -> tuple[Text, Text]:
    """Train and test set of some text files.

    Args:
        name: of the sets.
        files: in order; each is one label and one natural client.
        context: tokens of a sample; None means 64.
        vocab: at most so many byte-pair tokens, at least 257; None makes one token a character.
        train_limit: keep the first ceil(train_limit / files) samples of each file for training.

    Raises:
        DataError: a file is not UTF-8, an argument is out of range, or a split has no full window.
    """
    context = CONTEXT if context is None else context
    if context < 1:
        raise DataError(f"context must be at least 1 token, not {context}")
    if vocab is not None and vocab <= BYTES:
        raise DataError(f"vocab must be more than the {BYTES} bytes, not {vocab}")
    texts = [_read(file) for file in files]
    cuts = [len(text) - int(TEST_SHARE * len(text)) for text in texts]
    train = [text[:cut] for text, cut in zip(texts, cuts)]
    test = [text[cut:] for text, cut in zip(texts, cuts)]
    joined = "\n".join(train)
    vocabulary = Characters.train("".join(train)) if vocab is None else BytePairs.train(joined, vocab)
    most = None if train_limit is None else ceil(train_limit / len(files))
    return _windows(name, "train", train, vocabulary, context, most), _windows(
        name, "test", test, vocabulary, context, None
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _windows(
    name: str, split: str, texts: Sequence[str], vocabulary: Vocabulary, context: int, most: int | None
) -> Text:
    encoded = [vocabulary.encode(text) for text in texts]
    # The last target of a window is the first input of the next: a window needs one token more than it advances.
    counts = np.array([max(0, len(tokens) - 1) // context for tokens in encoded])
    if most is not None:
        counts = np.minimum(counts, most)
    if not counts.sum():
        longest = max(len(tokens) for tokens in encoded)
        raise DataError(
            f"{name}: no file's {split} split has the {context + 1} tokens of one sample (the longest has {longest}); "
            "give a smaller context or more text"
        )
    offsets = np.cumsum([0, *(len(tokens) for tokens in encoded)])
    starts = np.concatenate([offset + context * np.arange(count) for offset, count in zip(offsets, counts)])
    labels = np.repeat(np.arange(len(texts)), counts)
    tokens = torch.from_numpy(np.concatenate(encoded))
    return Text(name, tokens, torch.from_numpy(starts), torch.from_numpy(labels), vocabulary, context)
