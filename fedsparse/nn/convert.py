"""Turn a dense model into a sparse one and back, and say which layers may be pruned."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn.layers import SparseConv2d, SparseLinear
from fedsparse.nn.level import DENSE
from fedsparse.nn.region import leave
from fedsparse.nn.sparse_layer import SparseLayer
from fedsparse.topology import MEMORIES, Memory, Topology

Prunable = nn.Conv2d | nn.Linear | SparseLayer


def prunable(model: nn.Module, last: bool = False) -> dict[str, Prunable]:
    """Name the layers whose weights a method may prune, in the order of `model.named_modules()`.

    These are convolutions with groups = 1 and linear layers, dense or sparse. The last linear layer is left out unless
    `last` is true, as in the papers. Left out too, since a sparse layer could not take their place: subclasses of
    nn.Conv2d and nn.Linear (as the output projection of nn.MultiheadAttention) that do not name their sparse form as
    `sparse_class`, and layers whose weight another layer uses as well. A layer that the model holds under several names
    has the first.
    """
    tied = _tied_weights(model)
    layers: dict[str, Prunable] = {}
    final = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | SparseLinear):
            final = name
        if isinstance(module, SparseLayer) or (_replaceable(module) and id(module.weight) not in tied):
            layers[name] = module
    if not last and final in layers and len(layers) > 1:
        del layers[final]
    return layers


def _replaceable(module: nn.Module) -> bool:
    """Whether a dense layer has a sparse form that does the same."""
    if type(module) not in (nn.Conv2d, nn.Linear) and not hasattr(module, "sparse_class"):
        return False
    return not isinstance(module, nn.Conv2d) or module.groups == 1


def _tied_weights(model: nn.Module) -> set[int]:
    """The ids of parameters that belong to several modules."""
    owners = Counter(id(p) for module in model.modules() for p in set(module.parameters(recurse=False)))
    return {parameter for parameter, count in owners.items() if count > 1}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the sparse layers of a model by name, in the order of `model.named_modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def weight_shapes(layers: Mapping[str, Prunable]) -> dict[str, tuple[int, ...]]:
    """Return the dense weight shape of each layer, (N, C) or (N, C, kh, kw)."""
    return {
        name: layer.weight_shape if isinstance(layer, SparseLayer) else tuple(layer.weight.shape)
        for name, layer in layers.items()
    }


def sparsify(
    model: nn.Module,
    densities: float | Mapping[str, float] | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    granularity: int = 1,
    region: bool = True,
    memory: Memory = "fast",
) -> nn.Module:
    """Replace the prunable layers of `model`, in place, by sparse ones that keep the weights of the mask; return it.

    Give either `densities` (one number for every prunable layer but the last linear one, or one by layer name: the
    largest |w| are kept, round(d * n) weights and at least one, ties to the lower index) or `masks` (bool tensors of
    the weights' shapes by layer name; see `fedsparse.pruning` for ERK, SNIP and others). With `granularity` V > 1, V
    consecutive output channels share each column and are kept or pruned together. Layers not named stay dense. A dense
    layer whose sparse form is not SparseConv2d or SparseLinear names it as `sparse_class`.

    With `memory` "fast" a layer of single weights keeps int32 indices and their transpose, 12 bytes an active weight;
    with "compact" 2, int16 where a row has at most 2^15 columns (else int32), and the backward pass sorts them by
    channel each time. With V > 1 there is one index for each V weights and no transpose in either.

    With `region`, sparse convolutions on the CPU keep their outputs in blocks of images, and norms, ReLU, additions and
    pooling work on those (see `fedsparse.nn.region`); the model's output is an ordinary tensor.

    Raises ValueError for an unknown layer, a mask of the wrong shape, a density outside (0, 1], or another `memory`.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory is {memory!r} but must be {' or '.join(map(repr, MEMORIES))}")
    if (densities is None) == (masks is None):
        raise ValueError("sparsify takes either densities or masks")
    if granularity < 1:
        raise ValueError(f"granularity is {granularity} but must be at least 1")
    if isinstance(model, nn.Linear | nn.Conv2d):
        raise ValueError("a single layer cannot be replaced in itself: sparsify nn.Sequential(layer)")
    if masks is None:
        masks = _magnitude_masks(model, densities, granularity)
    known = {name: module for name, module in prunable(model, last=True).items() if not isinstance(module, SparseLayer)}
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(f"the model has no dense prunable layer {name!r}; it has: {', '.join(known) or 'none'}")
        layer = known[name]
        if tuple(mask.shape) != tuple(layer.weight.shape):
            raise ValueError(
                f"the mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(layer.weight.shape)}"
            )
        topology = Topology.from_mask(mask, granularity)
        usual: Any = SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear
        sparse = getattr(layer, "sparse_class", usual).from_dense(layer, topology)
        sparse.set_memory(memory)
        if isinstance(sparse, SparseConv2d):
            sparse.level = getattr(layer, "level", DENSE)
        sparse.values.requires_grad_(layer.weight.requires_grad)
        if sparse.bias is not None and layer.bias is not None:
            sparse.bias.requires_grad_(layer.bias.requires_grad)
        _replace(model, name, sparse)
    _set_region(model, region)
    return model


def densify(model: nn.Module) -> nn.Module:
    """Replace every sparse layer of `model`, in place, by the equal dense one; return it."""
    for name, layer in sparse_layers(model).items():
        _replace(model, name, layer.to_dense())  # type: ignore[operator]
    _set_region(model, False)
    return model


def _set_region(model: nn.Module, wanted: bool) -> None:
    layers = [layer for layer in sparse_layers(model).values() if isinstance(layer, SparseConv2d)]
    for layer in layers:
        layer.region = wanted
    for key, hook in list(model._forward_hooks.items()):
        if hook is leave:
            del model._forward_hooks[key]
    if wanted and layers:
        # First, so that the user's own hooks see a tensor.
        model.register_forward_hook(leave, prepend=True)


def explain(model: nn.Module) -> str:
    """Say, a line a layer, at which density it is and what runs its three passes.

    Each pass is run by the sparse kernels ("cpu"; on a GPU "triton" or "condensed") or by dense torch, whichever was
    faster (see `fedsparse.ops.dispatch`); which, and by what times, is known once the layer has had an input. Of a
    convolution that `sparsify` marked for the blocked region, also whether its last output stayed out of it, and
    for which functions of torch it has left the region so far; on a GPU what has run in one kernel with the norm after
    it; where its level is not "dense", what it keeps.
    """
    lines = []
    for name, module in prunable(model, last=True).items():
        if isinstance(module, SparseLayer):
            t = module.topology
            size = f"{t.nnz} of {t.numel} weights ({t.density:.2%})"
            lines.append(f"{name}: sparse, {_forced(module)}{size}{_layout(module)}{_kept(module)}{_choices(module)}")
        else:
            lines.append(f"{name}: dense, torch, {module.weight.numel()} weights")
    return "\n".join(lines)


def _forced(layer: SparseLayer) -> str:
    backend = ops.active_backend(layer.values.device)
    chosen = not ops.is_forced() and (backend == "cpu" or layer.choices())
    return "" if chosen else f"back end {backend}, "


def _choices(layer: SparseLayer) -> str:
    if ops.is_forced() or not (choices := layer.choices()):
        return ""
    return "; " + ", ".join(f"{name} {choice}" for name, choice in choices.items())


def _layout(layer: SparseLayer) -> str:
    if not isinstance(layer, SparseConv2d) or not layer.region:
        return ""
    if layer.values.is_cuda or layer.fused:
        together = f", {' and '.join(sorted(layer.fused))} in one kernel" if layer.fused else ""
        return f", images innermost where Triton kernels run{together}"
    if layer.seen is not None and not layer.blocked:
        return ", output not in blocks of images (autocast, a small batch, another dtype or a forced back end)"
    left = f", an ordinary tensor for {', '.join(sorted(layer.left))}" if layer.left else ""
    return f", output in blocks of images{left}"


def _kept(layer: SparseLayer) -> str:
    if not isinstance(layer, SparseConv2d) or layer.level.keeps_all:
        return ""
    level = layer.level
    in_layout = bool(layer.fused) and (level.halves or level.name == "recompute")
    if layer.blocked or layer.seen is None or level.name == "lossless" or in_layout:
        return f", activations {layer.level}"
    norms = "outside the blocked layout a norm keeps its input as it is"
    return f", activations {layer.level} ({norms}{'' if layer.level.name == 'pruned' else ', the rest is lossless'})"


def _magnitude_masks(
    model: nn.Module, densities: float | Mapping[str, float] | None, granularity: int
) -> dict[str, Tensor]:
    layers = prunable(model, last=not isinstance(densities, float | int))
    by_layer = densities if isinstance(densities, Mapping) else dict.fromkeys(layers, densities)
    masks = {}
    for name, density in by_layer.items():
        if name not in layers:
            raise ValueError(f"the model has no prunable layer {name!r}; it has: {', '.join(layers) or 'none'}")
        layer = layers[name]
        if isinstance(layer, SparseLayer):
            raise ValueError(f"{name} is sparse already")
        if density is None or not 0 < density <= 1:
            raise ValueError(f"the density of {name} is {density} but must be in (0, 1]")
        masks[name] = _largest(layer.weight.detach().abs(), density, granularity, name)
    return masks


def _largest(scores: Tensor, density: float, granularity: int, name: str) -> Tensor:
    rows = scores.shape[0]
    if rows % granularity:
        raise ValueError(f"granularity {granularity} does not divide the {rows} output channels of {name}")
    grouped = scores.reshape(rows // granularity, granularity, -1).sum(1)
    kept = ops.topk(grouped.flatten(), max(1, round(density * grouped.numel())))
    mask = torch.zeros(grouped.numel(), dtype=torch.bool, device=scores.device)
    mask[kept] = True
    return mask.view_as(grouped).repeat_interleave(granularity, dim=0).view_as(scores)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a layer in the place of another, under every name that the model has for it."""
    before = model.get_submodule(name)
    module.train(model.training)
    for parent in list(model.modules()):
        for child, held in parent._modules.items():
            if held is before:
                setattr(parent, child, module)
