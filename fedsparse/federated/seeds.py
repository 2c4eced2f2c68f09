"""Every random draw has a seed of its own, derived from (run seed, purpose, round, client).

So there is no random state to save, and a draw does not depend on which process makes it, or when.
"""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence

from fedsparse.wire.dtypes import Array


def derive(run: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed: the first bytes of SHA-256 over the four."""
    return int.from_bytes(_digest(run, purpose, round, client)[:8], "little") >> 1


def torch_generator(run: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(run, purpose, round, client))


def numpy_generator(run: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """A numpy generator, PCG64, whose 256 bits of seed are the SHA-256 over the four."""
    seed: Any = _Digest(_digest(run, purpose, round, client))  # numpy's stubs know its own SeedSequence only
    return np.random.Generator(np.random.PCG64(seed))


class Draws:
    """A context in which draws that name no generator, as dropout's, come from the seed, whoever worked before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self._before = torch.default_generator.get_state()
        # torch.manual_seed would note a stack trace at each call for a CUDA that never starts.
        torch.default_generator.manual_seed(self.seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(self.seed)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.default_generator.set_state(self._before)


class _Digest(ISeedSequence):
    """32 bytes as numpy's source of seeds: they need none of the mixing that takes `default_rng` most of its time."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Array:
        """The first words of the digest, of which PCG64 takes all."""
        words = np.frombuffer(self.digest, dtype=dtype)
        if n_words > len(words):
            raise ValueError(f"{n_words} words were asked for, but there are {len(words)}")
        return words[:n_words]


def _digest(run: int, purpose: str, round: int, client: int) -> bytes:
    return hashlib.sha256(f"{run}/{purpose}/{round}/{client}".encode()).digest()
