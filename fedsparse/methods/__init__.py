"""The registry of methods: one file, one paper.

A third party's method registers by an entry point in group `fedsparse.methods` whose value is the method's class.
"""

from functools import cache
from importlib.metadata import entry_points

from fedsparse.federated.method import Method
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.feddst import FedDST
from fedsparse.methods.fedmef import FedMef
from fedsparse.methods.fedrts import FedRTS
from fedsparse.methods.fedsgc import FedSGC
from fedsparse.methods.fedtiny import FedTiny
from fedsparse.methods.prunefl import PruneFL
from fedsparse.methods.ssfl import SSFL

_OURS: tuple[type[Method], ...] = (FedAvg, FedDST, FedMef, FedRTS, FedSGC, FedTiny, PruneFL, SSFL)


@cache
def _registry() -> dict[str, type[Method]]:
    found = {method.name: method for method in _OURS}
    for point in entry_points(group="fedsparse.methods"):
        method = point.load()
        if method.name in found:
            raise ValueError(
                f"the method name {method.name!r} of {point.value} is taken by {found[method.name].__module__}"
            )
        found[method.name] = method
    return found


def names() -> list[str]:
    """The names of all methods."""
    return list(_registry())


def get(name: str) -> type[Method]:
    """The class of a method; ValueError for an unknown name."""
    if name not in _registry():
        raise ValueError(f"{name!r} is not a method; there are {', '.join(names())}")
    return _registry()[name]


__all__ = ["SSFL", "FedAvg", "FedDST", "FedMef", "FedRTS", "FedSGC", "FedTiny", "PruneFL", "get", "names"]
