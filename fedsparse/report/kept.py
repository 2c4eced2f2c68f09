"""What a backward pass keeps, by kind: the tensors themselves, found in its functions before any of them runs.

activations: floats as they are. bfloat16: the same rounded to 2 bytes. packed: bitmap, values and starts of a
`PackedActivation`. bits: a bit or a byte an element, or its place (ReLU, pooling). statistics: means, deviations and
factors of norms. values: weights [nnz] as NSConv uses them. A tensor's bytes are those of its storage, counted once, at
the first function that keeps it; what was there before the step (parameters, buffers, the minibatch) is not counted.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from fedsparse.nn.kept import Source
from fedsparse.ops import PackedActivation
from fedsparse.topology import Topology

KINDS = ("activations", "bfloat16", "packed", "bits", "statistics", "values")
OTHER = "other"
"""Alive after the forward pass, but kept by no backward function: the output and the loss."""
REST = "(rest)"
"""What runs in no layer: the loss, functions that a model's `forward` calls itself."""
_RAW = "_raw_saved_"
Holder = Source | PackedActivation | None


def functions_of(loss: Tensor) -> list[Node]:
    """The backward functions of a loss in the order in which the forward pass made them, but for `AccumulateGrad`."""
    seen: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sorted((node for node in seen if "AccumulateGrad" not in node.name()), key=lambda n: n._sequence_nr())


def kept_by_kind(
    functions: Iterable[Node], owner: Callable[[Node], str], before: Iterable[Tensor]
) -> dict[str, dict[str, int]]:
    """Bytes that the functions keep, by owner and kind; not those of the tensors `before`."""
    counted = {_storage(tensor) for tensor in before}
    found: dict[str, Tally[str]] = {}
    for node in functions:
        name = owner(node)
        of_node = found.setdefault(name, Tally())
        for tensor, kind in _tensors_of(node, name != REST):
            if tensor.numel() and _storage(tensor) not in counted:
                counted.add(_storage(tensor))
                of_node[kind] += tensor.untyped_storage().nbytes()
    return {name: dict(kinds) for name, kinds in found.items() if kinds}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors_of(node: Node, layer: bool) -> list[tuple[Tensor, str]]:
    """The tensors that a function keeps, with their kinds; layer: whether a layer made it."""
    raw = [getattr(node, name) for name in dir(node) if name.startswith(_RAW)]
    found = list(_reached([[entry.data for entry in _flat(raw) if entry is not None], getattr(node, "__dict__", {})]))
    norm = "Norm" in node.name()
    sizes = (t.numel() if holder is None else torch.Size(holder.shape).numel() for t, holder in found)
    whole = max(sizes, default=0) if norm else 0
    return [(t, _kind(t, holder, whole, layer and not norm)) for t, holder in found]


def _kind(tensor: Tensor, holder: Holder, whole: int, product: bool) -> str:
    """whole: entries of a norm's input; product: whether the function may be that of a product with weights."""
    if isinstance(holder, PackedActivation):
        return "packed"
    if not tensor.is_floating_point():
        return "bits"
    if tensor.dim() == 1 and (product if holder is None else not holder.steps):
        return "values"
    if tensor.numel() < (whole if holder is None else holder.shape.numel()):
        return "statistics"
    return "bfloat16" if tensor.dtype == torch.bfloat16 else "activations"


def _reached(root: Any) -> Iterator[tuple[Tensor, Holder]]:
    """The tensors that an object holds, itself or through others, each with what holds it; layers and masks aside."""
    seen: set[int] = set()
    waiting: list[tuple[Any, Holder]] = [(root, None)]
    while waiting:
        entry, holder = waiting.pop()
        if id(entry) in seen or isinstance(entry, type | nn.Module | Topology):
            continue
        seen.add(id(entry))
        if isinstance(entry, Tensor):
            yield entry, holder
        else:
            holder = entry if isinstance(entry, Source | PackedActivation) else holder
            waiting += [(inner, holder) for inner in _held(entry)]


def _held(entry: Any) -> Iterable[Any]:
    if isinstance(entry, list | tuple):
        return entry
    if isinstance(entry, dict):
        return entry.values()
    if isinstance(entry, FunctionType):
        return [cell.cell_contents for cell in entry.__closure__ or ()]
    if isinstance(entry, MethodType):
        return [entry.__self__]
    if isinstance(entry, partial):
        return [entry.func, entry.args, entry.keywords]
    return vars(entry).values() if type(entry).__module__.startswith("fedsparse.") else ()


def _flat(entries: Iterable[Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, list | tuple):
            yield from _flat(entry)
        else:
            yield entry
