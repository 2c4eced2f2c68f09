"""Dense models by name, of plain torch modules whose convolutions and linear layers can be made sparse."""

from .registry import build, names

__all__ = ["build", "names"]
