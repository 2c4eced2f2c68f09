"""Every random draw has a seed of its own, derived from (run seed, purpose, round, client).

So there is no random state to save, and a draw does not depend on which process makes it, or when.
"""

import hashlib

import numpy as np
import torch


def derive(run: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed: the first bytes of SHA-256 over the four."""
    digest = hashlib.sha256(f"{run}/{purpose}/{round}/{client}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(run: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(run, purpose, round, client))


def numpy_generator(run: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """A numpy generator seeded by `derive`."""
    return np.random.default_rng(derive(run, purpose, round, client))
