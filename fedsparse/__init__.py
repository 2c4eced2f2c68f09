"""Federated learning with dynamic pruning in which the sparsity is real.

`sparsify`, `densify` and `explain` are loaded on first use, so that `import fedsparse` costs no import of torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOMES = dict.fromkeys(("SparseConv2d", "SparseLinear", "densify", "explain", "sparsify"), "fedsparse.nn")
_HOMES["Topology"] = "fedsparse.topology"
__all__ = ["SparseConv2d", "SparseLinear", "Topology", "densify", "explain", "sparsify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsparse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
