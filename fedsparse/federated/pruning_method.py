"""What methods share that prune: which layers have masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fedsparse.federated.method import Method
from fedsparse.nn import prunable, weight_shapes


@dataclass(frozen=True)
class PruningMethod(Method):
    """A method with masks.

    granularity: V of Vx1 masks, V consecutive output channels that share a column; 1 is single weights, the papers'.
    prune_last: whether the last linear layer has a mask too. layers: the type of layers that have masks; the others
    stay dense.
    """

    granularity: Annotated[int, Field(ge=1, le=64)] = 1
    prune_last: bool = False
    layers: Literal["all", "conv", "linear"] = "all"

    def prunes(self, model: nn.Module) -> list[str]:
        """The prunable layers of the type; ValueError where there is none."""
        kinds = {"all": (2, 4), "linear": (2,), "conv": (4,)}[self.layers]
        shapes = weight_shapes(prunable(model, self.prune_last))
        names = [name for name, shape in shapes.items() if len(shape) in kinds]
        if not names:
            raise ValueError(f"method.layers is {self.layers!r}, but the model has no such layer that may be pruned")
        return names
