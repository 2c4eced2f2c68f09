"""How much of its activations a layer keeps for the backward pass: the levels, and which layer has which."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedsparse.nn.activation_store import Store

NAMES = ("dense", "lossless", "bf16", "recompute", "pruned(SHARE)", "pruned(SHARE, bf16)")
_PRUNED = re.compile(r"pruned\(\s*([0-9.eE+-]+)\s*(?:,\s*(fp32|bf16)\s*)?\)")


@dataclass(frozen=True)
class Level:
    """What a convolution keeps of its input, and the norm after it of its own.

    dense: all, as torch does. lossless: norms keep their input, a ReLU's output that a norm made is made again from
    that, another one kept without its zeros; the same bits. bf16: as lossless, norms' inputs as bfloat16. recompute: of
    two norms' inputs in turn only one is kept, the other computed again by its convolution; the same bits. pruned: of
    each image's input to a convolution the `share` of largest magnitude is kept, as bfloat16 where `bfloat16`, and
    gradients of weights are computed from that (Huang et al., CVPR 2024); norms keep their input, as bfloat16 too.
    """

    name: str = "dense"
    share: float = 1.0
    bfloat16: bool = False

    @classmethod
    def parse(cls, text: str) -> "Level":
        """A level by its name; "pruned" takes the share in (0, 1] and the type of what is kept: "pruned(0.2, bf16)".

        ValueError for anything else.
        """
        if text in NAMES[:4]:
            return cls(text)
        found = _PRUNED.fullmatch(text)
        try:
            share = float(found[1]) if found else 0.0
        except ValueError:
            share = 0.0
        if found is None or not 0 < share <= 1:
            raise ValueError(f"activations is {text!r} but must be one of {', '.join(NAMES)}, SHARE in (0, 1]")
        return cls("pruned", share, found[2] == "bf16")

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is changed."""
        return self.name == "dense"

    @property
    def halves(self) -> bool:
        """Whether a norm keeps float32 inputs as bfloat16."""
        return self.bfloat16 or self.name == "bf16"

    @property
    def store(self) -> Store | None:
        """How an input is kept that nothing can make again; None: as it is."""
        return None if self.keeps_all else Store(self.share, self.bfloat16)

    def __str__(self) -> str:
        if self.name != "pruned":
            return self.name
        return f"pruned({self.share:g}{', bf16' if self.bfloat16 else ''})"


DENSE = Level()
Levels = str | Mapping[str, str]
"""One level for all layers, or levels by patterns of layers' names (`*`, `?`, `[...]`): the first that fits holds."""


def parse_levels(levels: Levels) -> dict[str, Level]:
    """Levels by pattern; ValueError for one that does not exist."""
    by_pattern = {"*": levels} if isinstance(levels, str) else levels
    if not by_pattern:
        raise ValueError("activations is an empty table but must name a level for a pattern at least")
    return {pattern: Level.parse(text) for pattern, text in by_pattern.items()}
