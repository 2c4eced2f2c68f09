"""Sums that a few dishonest clients cannot move: coordinate median, trimmed mean, Krum. Each keeps every report.

Memory of the server: the reports of the round, m times the parameters, and a sort of as many numbers in pieces; the
mean of `Total` needs one sum. All three give every client the same weight: a dishonest one declares what it likes.
What is bounded already, masks and sets of indices, stays a sum weighted by samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsparse.federated.total import Total
from fedsparse.wire import Bitmap, Indices, Masked, Pairs, Section, Values

Rule = Literal["mean", "median", "trimmed", "krum"]
PIECE = 1 << 22
"""Numbers that are sorted at once: about 100 MB of work memory."""


@dataclass(frozen=True)
class Aggregation:
    """How accepted reports become one.

    rule: `mean`, weighted by samples (the default); `median` of each coordinate (Yin et al., ICML 2018); `trimmed`, its
    mean without the share `trim` of the reports at either end (same paper); `krum` (Blanchard et al., NeurIPS 2017),
    the one report that is nearest to its m - `attackers` - 2 neighbours. Where clients' masks differ, a coordinate
    counts only those that hold it. norm_bound: a report that moves the model by more, in the 2-norm, is rejected.
    What a method asks before round 0 is always a mean.
    """

    rule: Rule = "mean"
    trim: float = 0.1
    attackers: int = 1
    norm_bound: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("mean", "median", "trimmed", "krum"):
            raise ValueError(f"rule is {self.rule!r} but must be one of mean, median, trimmed, krum")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim is {self.trim} but must be at least 0 and below 0.5")
        if self.attackers < 0:
            raise ValueError(f"attackers is {self.attackers} but must be at least 0")
        if self.norm_bound is not None and not self.norm_bound > 0:
            raise ValueError(f"norm_bound is {self.norm_bound} but must be greater than 0")

    def total(self, declared: int) -> Total:
        """An empty sum of reports of clients that declared so many samples together."""
        if self.rule == "median":
            return Median(declared)
        if self.rule == "trimmed":
            return Trimmed(declared, trim=self.trim)
        return Krum(declared, attackers=self.attackers) if self.rule == "krum" else Total(declared)


@dataclass
class Kept(Total):
    """A total that keeps each report's numbers, in the order of the clients' ids whatever the order of arrival."""

    reports: dict[int, dict[str, Section]] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)

    def add(self, client: int, samples: int, sections: Mapping[str, Section]) -> None:
        """Add one validated report."""
        bounded = {name: s for name, s in sections.items() if isinstance(s, Bitmap | Indices)}
        super().add(client, samples, bounded)
        self.weights[client] = samples
        self.reports[client] = {name: s for name, s in sections.items() if name not in bounded}

    def sent(self, name: str) -> list[Section]:
        """The section of every report that has it, by client id."""
        return [self.reports[id][name] for id in sorted(self.reports) if name in self.reports[id]]


@dataclass
class Sorted(Kept):
    """Per coordinate the mean of the middle of the sorted reports."""

    @abstractmethod
    def cut(self, count: Tensor) -> Tensor:
        """How many of `count` reports (int64 [n]) are left out at either end."""

    def mean(self, name: str) -> Tensor:
        """The middle of the reports: float32, the section's shape."""
        if name in self._dense:
            return super().mean(name)
        return self._middle([s.tensor() for s in self.sent(name) if isinstance(s, Values)])

    def pairs(self, name: str) -> tuple[Tensor, Tensor]:
        """(indices [u] that anybody sent, the middle of what was sent times the share of clients that sent it)."""
        if name in self._pairs:
            return super().pairs(name)
        sent = [s for s in self.sent(name) if isinstance(s, Pairs)]
        where = [torch.as_tensor(s.indices).long() for s in sent]
        union = torch.unique(torch.cat(where))
        rows = []
        for indices, section in zip(where, sent):
            numbers = section.tensor().float()
            row = torch.full((len(union), *numbers.shape[1:]), torch.nan)
            row[torch.searchsorted(union, indices)] = numbers
            rows.append(row)
        share = torch.stack([~row.isnan() for row in rows]).float().mean(0)
        return union, self._middle(rows) * share

    def masked(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of the coordinates that any client has, the middle over those that do, and their share of the samples."""
        sent = {id: s for id, s in zip(sorted(self.reports), self.sent(name)) if isinstance(s, Masked)}
        places = {id: torch.from_numpy(section.bits.indices()) for id, section in sent.items()}
        union = torch.unique(torch.cat(list(places.values())))
        rows, share = [], torch.zeros(len(union))
        for id, section in sent.items():
            own = torch.searchsorted(union, places[id])
            row = torch.full((len(union),), torch.nan)
            row[own] = section.tensor().float()
            rows.append(row)
            share[own] += self.weights[id] / self.accepted
        return union, self._middle(rows), share

    def _middle(self, rows: list[Tensor]) -> Tensor:
        """Rows [...] of float32, NaN where a report lacks the coordinate, to the middle of each coordinate."""
        if not rows:
            raise ValueError("no report was accepted, so there is no middle")
        flat = [row.float().reshape(-1) for row in rows]
        size = max(1, PIECE // len(flat))
        starts = range(0, len(flat[0]), size)
        pieces = [self._middle_of(torch.stack([row[at : at + size] for row in flat])) for at in starts]
        return (torch.cat(pieces) if pieces else flat[0]).view(rows[0].shape)

    def _middle_of(self, numbers: Tensor) -> Tensor:
        """[m, n] to [n]."""
        ordered = numbers.sort(dim=0).values  # NaN is last
        count = (~numbers.isnan()).sum(0)
        cut = self.cut(count)
        place = torch.arange(len(numbers))[:, None]
        middle = (place >= cut) & (place < count - cut)
        summed = torch.where(middle, ordered, 0.0).double().sum(0)
        return (summed / middle.sum(0).clamp(min=1)).float()


@dataclass
class Median(Sorted):
    """The median; of an even number of reports the mean of the two in the middle."""

    def cut(self, count: Tensor) -> Tensor:
        """All but one or two."""
        return ((count - 1) // 2).clamp(min=0)


@dataclass
class Trimmed(Sorted):
    """The mean without the floor(trim * m) lowest and as many of the highest."""

    trim: float = 0.1

    def cut(self, count: Tensor) -> Tensor:
        """floor(trim * count), with room for rounding: 0.1 of 10 is 1."""
        return (self.trim * count.double() + 1e-9).long()


@dataclass
class Krum(Kept):
    """The report whose summed squared distance to its m - attackers - 2 nearest neighbours (at least 1) is least.

    Distances are between models: `parameters`, or by coordinate, a weight that a client lacks counting as 0. The
    method sees that one report and nothing of the others.
    """

    attackers: int = 1
    _standing: Total | None = None

    def add(self, client: int, samples: int, sections: Mapping[str, Section]) -> None:
        """Add one validated report."""
        super().add(client, samples, sections)
        self._standing = None

    def chosen(self) -> int:
        """The client whose report stands; the lowest id of several."""
        ids = sorted(self.reports)
        nearest = min(max(1, len(ids) - self.attackers - 2), len(ids) - 1)
        scores = []
        for one in ids:
            distances = torch.stack([_square_distance(self.reports[one], self.reports[other]) for other in ids])
            # The smallest is the distance to itself.
            scores.append(float(distances.sort().values[1 : nearest + 1].sum()))
        return ids[min(range(len(ids)), key=scores.__getitem__)]

    def mean(self, name: str) -> Tensor:
        """The chosen report's section."""
        return super().mean(name) if name in self._dense else self._one().mean(name)

    def pairs(self, name: str) -> tuple[Tensor, Tensor]:
        """The chosen report's pairs."""
        return super().pairs(name) if name in self._pairs else self._one().pairs(name)

    def masked(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen report's coordinates."""
        return self._one().masked(name)

    def _one(self) -> Total:
        if not self.reports:
            raise ValueError("no report was accepted, so there is none to choose")
        if self._standing is None:
            id = self.chosen()
            self._standing = Total(self.weights[id])
            self._standing.add(id, self.weights[id], self.reports[id])
        return self._standing


def _square_distance(one: Mapping[str, Section], other: Mapping[str, Section]) -> Tensor:
    """The squared distance of the models that two reports stand for: float64 []."""
    total = torch.zeros((), dtype=torch.float64)
    for name in ("parameters", "weights", "rest"):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Masked) and isinstance(b, Masked):
            places = [torch.from_numpy(section.bits.indices()) for section in (a, b)]
            union, at = torch.unique(torch.cat(places), return_inverse=True)
            signed = torch.cat([a.tensor().float(), -b.tensor().float()])
            total += torch.zeros(len(union)).index_add_(0, at, signed).double().square().sum()
        elif isinstance(a, Values) and isinstance(b, Values):
            total += (a.tensor().float() - b.tensor().float()).double().square().sum()
    return total
