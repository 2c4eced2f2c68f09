"""Sums of clients' reports that do not depend on the order of arrival.

A number x of a client with share p of the samples is added as the integer rint(p x 2^40): integers add in any order and
grouping to the same bits, so one process and many ranks agree, and the server's memory does not grow with the number
of clients. The resolution is 2^-40; |x| must be below 2^22 (`LIMIT`), which validation guarantees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Section, Values, fixed_point
from fedsparse.wire.dtypes import Array

SCALE = 2.0**40
LIMIT = 2.0**22


@dataclass
class Total:
    """The running sum over accepted reports, and after the last one their weighted mean.

    declared: samples of all clients asked; accepted: samples of those added; clients: their ids in order
    of arrival. losses: mean training loss by client.
    """

    declared: int
    accepted: int = 0
    clients: list[int] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    _dense: dict[str, Array] = field(default_factory=dict)
    _pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _masked: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, client: int, samples: int, sections: Mapping[str, Section]) -> None:
        """Add one validated report: Values elementwise, Pairs and Indices by index, Masked by coordinate."""
        share = samples / self.declared
        for name, section in sections.items():
            if isinstance(section, Values):
                self._add_values(name, section, share)
            elif isinstance(section, Masked):
                self._add_masked(name, section, share)
            elif isinstance(section, Pairs):
                self._add_pairs(name, torch.as_tensor(section.indices), _fixed(section.tensor(), share))
            elif isinstance(section, Indices):
                ones = torch.ones(len(section.indices))
                self._add_pairs(name, torch.as_tensor(section.indices), _fixed(ones, share))
            elif isinstance(section, Bitmap):
                self._add_values(name, Values(section.mask.astype(np.float32)), share)
        self.accepted += samples
        self.clients.append(client)

    def sections(self) -> dict[str, Section]:
        """The sums as sections of a message, for another total to `merge`: int64, and the clients that are in them."""
        clients: dict[str, Section] = {"clients": Values(np.array(self.clients, dtype=np.int64))}
        dense = {f"dense/{name}": Values(sums) for name, sums in self._dense.items()}
        kinds = {"pairs": self._pairs, "masked": self._masked}
        sparse = {f"{kind}/{name}": _indexed(*sums) for kind, held in kinds.items() for name, sums in held.items()}
        return clients | dense | sparse

    def merge(self, sections: Mapping[str, Section]) -> None:
        """Add the sums that `sections` of another total of the same round gave; who is in them, the caller counts."""
        for key, section in sections.items():
            kind, _, name = key.partition("/")
            if kind == "dense" and isinstance(section, Values):
                if name in self._dense:
                    self._dense[name] += section.array
                else:
                    self._dense[name] = section.array
            elif isinstance(section, Pairs):
                held = {"pairs": self._pairs, "masked": self._masked}[kind]
                self._merge(held, name, torch.from_numpy(section.indices), section.tensor())

    def mean(self, name: str) -> Tensor:
        """The weighted mean sum p_k x_k over the accepted clients: float32, the section's shape."""
        return self._real(torch.from_numpy(self._dense[name]))

    def pairs(self, name: str) -> tuple[Tensor, Tensor]:
        """(sorted indices int64 [u], sum p_k x_k float32 [u] or [u, width]) over what any client sent; missing = 0."""
        indices, sums = self._pairs[name]
        return indices, self._real(sums)

    def masked(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of the coordinates that any client has, sorted int64 [u]: mean and share, float32 [u].

        mean: sum_k p_k m_k x_k / sum_k p_k m_k; share: sum_k p_k m_k.
        """
        places, both = self._masked[name]
        sums, weights = both.unbind(1)
        return places, (sums.double() / weights.clamp(min=1).double()).float(), self._real(weights)

    def _real(self, fixed: Tensor) -> Tensor:
        if self.accepted == 0:
            raise ValueError("no report was accepted, so there is no mean")
        return (fixed.double() / SCALE * (self.declared / self.accepted)).float()

    def _add_values(self, name: str, section: Values, share: float) -> None:
        if name not in self._dense:
            self._dense[name] = torch.zeros(section.array.shape, dtype=torch.int64).numpy()
        fixed_point.add(self._dense[name], _floats(section), share * SCALE)

    def _add_masked(self, name: str, section: Masked, share: float) -> None:
        fixed = _fixed(_floats(section), share)
        both = torch.stack([fixed, torch.full_like(fixed, round(share * SCALE))], dim=1)
        self._merge(self._masked, name, torch.from_numpy(section.bits.indices()), both)

    def _add_pairs(self, name: str, indices: Tensor, fixed: Tensor) -> None:
        self._merge(self._pairs, name, indices.long(), fixed)

    @staticmethod
    def _merge(sums: dict[str, tuple[Tensor, Tensor]], name: str, indices: Tensor, fixed: Tensor) -> None:
        """Add rows [a, ...] at sorted indices [a] to what is there by index."""
        if name in sums:
            before, there = sums[name]
            if torch.equal(before, indices):
                fixed = there.add_(fixed)
            else:
                merged, place = torch.unique(torch.cat([before, indices]), return_inverse=True)
                old, new = place.split([len(before), len(indices)])
                fixed = fixed.new_zeros(len(merged), *fixed.shape[1:]).index_add_(0, new, fixed)
                fixed.index_add_(0, old, there)
                indices = merged
        sums[name] = (indices, fixed)


def _indexed(indices: Tensor, sums: Tensor) -> Pairs:
    return Pairs(indices, sums, int(indices[-1]) + 1 if len(indices) else 0)


def _floats(section: Values | Masked) -> Array:
    """The values as float32, which holds what every lossy carrier delivers."""
    return section.values if section.values.dtype == np.float32 else section.tensor().float().numpy()


def _fixed(numbers: object, share: float) -> Tensor:
    return (torch.as_tensor(numbers).double() * (share * SCALE)).round_().long()
