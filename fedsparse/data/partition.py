"""Splits of a data set over clients.

Every split ends: the ask is checked first, redraws are bounded, and what a draw leaves short is repaired
by moving samples. The parts are disjoint, cover every sample, and depend on nothing but the arguments
and the generator's state.
"""

from __future__ import annotations

import heapq
from math import isfinite

import numpy as np

KINDS = ("iid", "dirichlet", "shards", "quantity", "natural")
MAX_DRAWS = 10


def partition(
    kind: str,
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    min_samples: int = 1,
    contiguous: bool = False,
    natural: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Sample indices of each client.

    Args:
        kind: "iid": a random split into equal parts. "dirichlet": each class is split by proportions drawn
            from Dirichlet(alpha) over the clients (Yurochkin et al., ICML 2019). "shards": samples sorted by
            label are cut into clients * classes_per_client equal shards, each client gets classes_per_client
            of them at random (McMahan et al., AISTATS 2017); a shard across a border between labels gives
            its client one label more. "quantity": whatever the labels, each client gets min_samples and its share of
            the rest, drawn from Dirichlet(alpha). "natural": each natural client whole; where there are more of them
            than clients, they are dealt at random, as many to each client.
        labels: int [n].
        clients: how many parts.
        rng: source of all draws.
        alpha: concentration for "dirichlet" and "quantity"; the smaller the more skewed.
        classes_per_client: shards a client for "shards".
        min_samples: the fewest samples that a client may get.
        contiguous: for "quantity", cut the samples in their order instead of a random one.
        natural: for "natural", the natural client of each sample, int [n], numbered from 0.

    Returns:
        `clients` arrays, int64, sorted, disjoint, together 0..n-1.

    Raises:
        ValueError: an argument out of range, or more asked than there are samples.
    """
    labels = np.asarray(labels)
    _check(kind, labels, clients, alpha, classes_per_client, min_samples)
    if contiguous and kind != "quantity":
        raise ValueError(f"contiguous is for partition kind 'quantity', not {kind!r}")
    if kind == "natural":
        return _natural(natural, len(labels), clients, rng, min_samples)
    if kind == "iid":
        owner = _deal(rng.permutation(len(labels)), rng.permutation(clients))
    elif kind == "dirichlet":
        owner = _dirichlet(labels, clients, rng, alpha, min_samples)
    elif kind == "quantity":
        owner = _quantity(len(labels), clients, rng, alpha, min_samples, contiguous)
    else:
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner = _deal(by_label, rng.permutation(np.repeat(np.arange(clients), classes_per_client)))
    if _shortfall(owner, clients, min_samples):
        owner = _repair(owner, clients, min_samples, rng)
    return _parts(owner, clients)


def _check(
    kind: str, labels: np.ndarray, clients: int, alpha: float, classes_per_client: int, min_samples: int
) -> None:
    if kind not in KINDS:
        raise ValueError(f"partition kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape [n], not {labels.dtype} of shape {list(labels.shape)}")
    for name, count in (
        ("clients", clients),
        ("min_samples", min_samples),
        ("classes_per_client", classes_per_client),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    if not (isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
    if clients * min_samples > len(labels):
        raise ValueError(
            f"{clients} clients with min_samples = {min_samples} need {clients * min_samples} samples, "
            f"and there are {len(labels)}"
        )
    if kind == "shards" and clients * classes_per_client > len(labels):
        raise ValueError(
            f"{clients} clients with classes_per_client = {classes_per_client} need "
            f"{clients * classes_per_client} shards with a sample each, and there are {len(labels)} samples"
        )


def _parts(owner: np.ndarray, clients: int) -> list[np.ndarray]:
    """Each client's samples, ascending, from the owner of each sample."""
    ends = np.cumsum(np.bincount(owner, minlength=clients))[:-1]
    return np.split(np.argsort(owner, kind="stable"), ends)


def _deal(order: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Cut `order` into len(owners) runs whose lengths differ by at most 1; run i belongs to owners[i]."""
    runs = len(owners)
    lengths = np.full(runs, len(order) // runs) + (np.arange(runs) < len(order) % runs)
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = np.repeat(owners, lengths)
    return owner


def _shortfall(owner: np.ndarray, clients: int, min_samples: int) -> int:
    return int(np.maximum(0, min_samples - np.bincount(owner, minlength=clients)).sum())


def _dirichlet(
    labels: np.ndarray, clients: int, rng: np.random.Generator, alpha: float, min_samples: int
) -> np.ndarray:
    """The first of at most MAX_DRAWS draws in which nobody is short, else the one that is least short."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    best, least = np.empty(0, dtype=np.int64), len(labels) + 1
    for _ in range(MAX_DRAWS):
        owner = np.empty(len(labels), dtype=np.int64)
        for indices in members:
            cuts = np.rint(np.cumsum(_proportions(clients, rng, alpha)) * len(indices)).astype(np.int64)
            cuts[-1] = len(indices)
            owner[rng.permutation(indices)] = np.repeat(np.arange(clients), np.diff(cuts, prepend=0))
        short = _shortfall(owner, clients, min_samples)
        if short < least:
            best, least = owner, short
        if not short:
            break
    return best


def _quantity(
    samples: int, clients: int, rng: np.random.Generator, alpha: float, min_samples: int, contiguous: bool
) -> np.ndarray:
    rest = samples - clients * min_samples
    cuts = np.rint(np.cumsum(_proportions(clients, rng, alpha)) * rest).astype(np.int64)
    cuts[-1] = rest
    owner = np.empty(samples, dtype=np.int64)
    order = np.arange(samples) if contiguous else rng.permutation(samples)
    owner[order] = np.repeat(np.arange(clients), min_samples + np.diff(cuts, prepend=0))
    return owner


def _natural(
    natural: np.ndarray | None, samples: int, clients: int, rng: np.random.Generator, min_samples: int
) -> list[np.ndarray]:
    if natural is None:
        raise ValueError("partition kind 'natural' needs a data set that says which client each sample is from")
    names, groups = np.unique(np.asarray(natural), return_inverse=True)
    if groups.shape != (samples,):
        raise ValueError(f"natural must name a client for each of the {samples} samples, not have shape {groups.shape}")
    if clients > len(names):
        raise ValueError(f"there are {len(names)} natural clients, so clients must be at most that, not {clients}")
    # As many natural clients as parts: the order stays that of the data set.
    order = np.arange(clients) if clients == len(names) else rng.permutation(len(names))
    parts = _parts(_deal(order, np.arange(clients))[groups], clients)
    shortest = min(range(clients), key=lambda client: len(parts[client]))
    if len(parts[shortest]) < min_samples:
        raise ValueError(
            f"natural clients stay whole, and client {shortest} has {len(parts[shortest])} samples: "
            f"min_samples must be at most that, not {min_samples}, or clients fewer"
        )
    return parts


def _proportions(clients: int, rng: np.random.Generator, alpha: float) -> np.ndarray:
    share = rng.dirichlet(np.full(clients, alpha))
    if not np.isfinite(share).all() or abs(share.sum() - 1) > 1e-6:
        # So small an alpha underflows; its limit gives the whole class to one client.
        share = np.zeros(clients)
        share[rng.integers(clients)] = 1.0
    return share


def _repair(owner: np.ndarray, clients: int, min_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Move samples, one at a time, from the richest client to each short one, the poorest first.

    While somebody is short somebody is above min_samples, for there are enough samples: each move lowers the
    shortfall by one. Ties go to the lower client; a client's samples leave it in random order, so that its
    mixture of labels stays what it was.
    """
    pools = [rng.permutation(part).tolist() for part in _parts(owner, clients)]
    richest = [(-len(pool), client) for client, pool in enumerate(pools)]
    heapq.heapify(richest)
    owner = owner.copy()
    # A receiver's entry in the heap grows stale, but below min_samples it never comes to the top.
    for size, client in sorted((len(pool), client) for client, pool in enumerate(pools)):
        for _ in range(size, min_samples):
            held, donor = heapq.heappop(richest)
            owner[pools[donor].pop()] = client
            heapq.heappush(richest, (held + 1, donor))
    return owner
