"""The sections in order of importance, and how long each may take: all of them and the tests in gpu_check's time.

A section runs its first cases, which are the most important; `--only NAME --minutes 10` runs all of one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from .rows import Case


@dataclass(frozen=True)
class Section:
    """A module of this package with a function `cases`, its heading and its allowance in seconds."""

    name: str
    heading: str
    seconds: float

    def cases(self, smoke: bool = False) -> list[Case]:
        """Its cases, most important first; every fourth of them in a smoke test."""
        cases: list[Case] = importlib.import_module(f"{__package__}.{self.name}").cases()
        return cases[::4] if smoke else cases


SECTIONS = (
    Section("ceilings", "Ceilings of the device", 10),
    Section("steps", "Dense ResNet-18 training steps (what masked training costs today)", 50),
    Section("sparse_steps", "Sparse ResNet-18 training steps", 40),
    Section("memory", "Memory of a ResNet-18 training step, batch 64, density 5 %", 24),
    Section("layers", "Dense 3x3 layers (forward / input gradient / weight gradient)", 20),
    Section("strip_layers", "Sparse 3x3 layers on Triton kernels, against dense channels_last (three passes)", 40),
    Section("sparse_ops", "Sparse ops (forward / input gradient / weight gradient)", 16),
    Section("engine_steps", "The engine's local training, launched and with recorded steps", 14),
    Section("norms", "Norm, residual and ReLU in one kernel (forward / backward)", 10),
    Section("selection", "topk, growth and sums of reports", 12),
    Section("clients", "Clients on one GPU, dense", 20),
    Section("cohorts", "Clients trained at once", 24),
    Section("compiled", "Dense steps under torch.compile (launched / replayed from a graph)", 45),
)
BUILD_SECONDS, TEST_SECONDS = 180.0, 120.0


def section(name: str) -> Section:
    """The section of that name."""
    return next(section for section in SECTIONS if section.name == name)
