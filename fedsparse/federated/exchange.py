"""A model as the sections of a message, and back.

`parameters`: all parameters in the order of `model.parameters()`, a sparse layer's as its values [nnz], in one vector.
`buffers`: the floating-point buffers (norm statistics) in one vector; index arrays and counters do not travel.
Both narrow on the way as `wire` says; with "int8" the parameters do, each tensor with a scale of its own, and whatever
else is half precision in any lossy mode travels as bfloat16, which has float32's range.
`mask`: one bit a group of every sparse layer, in the order of `model.named_modules()`.
"""

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.nn import SparseLayer, prunable, sparse_layers, sparsify
from fedsparse.nn.walk import Tensors, parameters_of
from fedsparse.pruning import active_groups, from_groups
from fedsparse.topology import Memory
from fedsparse.wire import Bitmap, Bits, Carrier, Quantised, Section, Values
from fedsparse.wire.dtypes import Array


def parameters(model: nn.Module | Tensors) -> Tensor:
    """A copy of all parameters as one float32 vector on the CPU."""
    return torch.from_numpy(_vector(Tensors.of(model).parameters))


def buffers(model: nn.Module | Tensors) -> Tensor:
    """A copy of all floating-point buffers as one float32 vector on the CPU."""
    return torch.from_numpy(_vector(Tensors.of(model).statistics))


def counters(model: nn.Module) -> dict[str, Tensor]:
    """The integer buffers of a model by name (batches that a norm has seen), but the index arrays of sparse layers."""
    return {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if not isinstance(module, SparseLayer)
        for key, buffer in module.named_buffers(recurse=False)
        if not buffer.is_floating_point()
    }


def mask(model: nn.Module) -> Tensor:
    """The masks of all sparse layers as one bool vector over groups, on the CPU. Nothing of a run makes it whole."""
    return torch.from_numpy(mask_bits(model).mask())


def mask_bits(model: nn.Module) -> Bits:
    """The masks of all sparse layers, a bit a group."""
    bits, layers = Bits.zeros(group_count(model)), sparse_layers(model)
    for name, start in offsets(model).items():
        bits.put(active_groups(layers[name].topology).cpu().numpy() + start)
    return bits


def sections(model: nn.Module | Tensors, wire: Carrier, seed: int) -> dict[str, Section]:
    """`parameters` and `buffers` of a model; `seed` decides how int8 values are rounded."""
    model = Tensors.of(model)
    return {
        "parameters": narrowed(model, wire, seed),
        "buffers": Values(_vector(model.statistics), wire=beside(wire)),
    }


def narrowed(model: nn.Module | Tensors, wire: Carrier, seed: int) -> Values:
    """The section `parameters` of a model."""
    tensors = Tensors.of(model).parameters
    return narrow(_vector(tensors), [p.numel() for p in tensors], wire, seed)


def narrow(vector: Tensor | Array, sizes: Sequence[int], wire: Carrier, seed: int) -> Values:
    """Parameters as one float32 vector, of tensors of these sizes, as a section."""
    return Quantised(vector, sizes, seed) if wire == "int8" else Values(vector, wire=wire)


def beside(wire: Carrier) -> Carrier:
    """How float32 numbers travel that go beside the parameters: statistics, gradients."""
    return "fp32" if wire == "fp32" else "bf16"


def load_parameters(model: nn.Module | Tensors, vector: Tensor) -> None:
    """Copy a vector made by `parameters` into a model of the same masks."""
    _unflatten(Tensors.of(model).parameters, vector, "parameters")


def load_buffers(model: nn.Module | Tensors, vector: Tensor) -> None:
    """Copy a vector made by `buffers` into a model."""
    _unflatten(Tensors.of(model).statistics, vector, "buffers")


def split_parameters(model: nn.Module, vector: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Cut a vector made by `parameters` into the values [nnz] of each sparse layer and one vector of all the rest."""
    owners = {id(layer.values): name for name, layer in sparse_layers(model).items()}
    values: dict[str, Tensor] = {}
    rest = []
    for parameter, piece in zip(parameters_of(model), vector.split([p.numel() for p in parameters_of(model)])):
        if id(parameter) in owners:
            values[owners[id(parameter)]] = piece
        else:
            rest.append(piece)
    return values, torch.cat(rest) if rest else vector[:0]


def join_parameters(model: nn.Module, values: Mapping[str, Tensor], rest: Tensor) -> Tensor:
    """The vector that `split_parameters` cuts into these."""
    owners = {id(layer.values): name for name, layer in sparse_layers(model).items()}
    pieces, start = [], 0
    for parameter in model.parameters():
        if id(parameter) in owners:
            pieces.append(values[owners[id(parameter)]])
        else:
            pieces.append(rest[start : start + parameter.numel()])
            start += parameter.numel()
    return torch.cat(pieces)


def group_count(model: nn.Module) -> int:
    """The length of `mask`: groups of all sparse layers, active or not."""
    return sum(_groups(layer, layer.granularity) for layer in sparse_layers(model).values())


def mask_size(model: nn.Module, names: Sequence[str], granularity: int) -> int:
    """The number of bits of the mask of the named layers, dense or sparse."""
    return sum(_groups(layer, granularity) for name, layer in prunable(model, last=True).items() if name in names)


def load_mask(model: nn.Module, bits: Bits, names: Sequence[str], granularity: int, memory: Memory) -> None:
    """Give the named layers the masks that `bits` says, making dense ones sparse (`memory`: see `sparsify`)."""
    layers = {name: layer for name, layer in prunable(model, last=True).items() if name in names}
    dense_masks: dict[str, Tensor] = {}
    start = 0
    for name, layer in layers.items():
        groups = torch.from_numpy(bits.between(start, start + _groups(layer, granularity)))
        start += _groups(layer, granularity)
        topology = from_groups(groups, _shape(layer), granularity)
        if isinstance(layer, SparseLayer):
            layer.set_topology(topology)
        else:
            dense_masks[name] = topology.mask()
    if dense_masks:
        sparsify(model, masks=dense_masks, granularity=granularity, memory=memory)


def load(
    model: nn.Module, sections: Mapping[str, Section], names: Sequence[str], granularity: int, memory: Memory
) -> None:
    """Load what is there of `mask`, `parameters` and `buffers`; the rest as in `load_mask`."""
    if isinstance(bits := sections.get("mask"), Bitmap):
        load_mask(model, bits.bits, names, granularity, memory)
    load_vectors(model, vectors(sections))


def vectors(sections: Mapping[str, Section]) -> dict[str, Tensor]:
    """What is there of `parameters` and `buffers`, sharing the sections' memory."""
    found = {name: sections.get(name) for name in ("parameters", "buffers")}
    return {name: section.tensor() for name, section in found.items() if isinstance(section, Values)}


def load_vectors(model: nn.Module | Tensors, found: Mapping[str, Tensor]) -> None:
    """Load what is there of `parameters` and `buffers`."""
    model = Tensors.of(model)
    if "parameters" in found:
        load_parameters(model, found["parameters"])
    if "buffers" in found:
        load_buffers(model, found["buffers"])


def split_by_layer(model: nn.Module, groups: Tensor, *columns: Tensor) -> Mapping[str, tuple[Tensor, ...]]:
    """Cut (sorted global group indices, aligned columns ...) into one tuple a sparse layer, with local indices."""
    parts = {}
    start = 0
    for name, layer in sparse_layers(model).items():
        end = start + _groups(layer, layer.granularity)
        low, high = (int(i) for i in torch.searchsorted(groups, torch.tensor([start, end])))
        parts[name] = (groups[low:high] - start, *(column[low:high] for column in columns))
        start = end
    return parts


def offsets(model: nn.Module) -> dict[str, int]:
    """Where each sparse layer's groups start in the mask of the whole model."""
    starts, start = {}, 0
    for name, layer in sparse_layers(model).items():
        starts[name] = start
        start += _groups(layer, layer.granularity)
    return starts


def _groups(layer: nn.Module, granularity: int) -> int:
    return torch.Size(_shape(layer)).numel() // granularity


def _shape(layer: nn.Module) -> tuple[int, ...]:
    return layer.weight_shape if isinstance(layer, SparseLayer) else tuple(layer.get_parameter("weight").shape)


def _vector(tensors: Sequence[Tensor]) -> Array:
    if not tensors:
        return np.empty(0, dtype=np.float32)
    if not all(map(_is_plain, tensors)):
        with torch.no_grad():
            return torch.cat([t.reshape(-1) for t in tensors]).to("cpu", torch.float32).numpy()
    vector = torch.empty(sum(t.numel() for t in tensors))
    at = vector.data_ptr()
    for t in tensors:
        ctypes.memmove(at, t.data_ptr(), t.nbytes)
        at += t.nbytes
    return vector.numpy()


def _unflatten(tensors: Sequence[Tensor], vector: Tensor, what: str) -> None:
    sizes = [t.numel() for t in tensors]
    if vector.numel() != sum(sizes):
        raise ValueError(f"{what} hold {vector.numel()} numbers, but the model has {sum(sizes)}")
    if tensors and not all(map(_is_plain, (*tensors, vector))):
        with torch.no_grad():
            # To a GPU in one piece.
            pieces = vector.to(tensors[0].device).split(sizes)
            torch._foreach_copy_(list(tensors), [piece.view_as(t) for piece, t in zip(pieces, tensors)])
        return
    at = vector.data_ptr()
    for t in tensors:
        ctypes.memmove(t.data_ptr(), at, t.nbytes)
        at += t.nbytes


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is float32 without gaps in the memory of the CPU: then its bytes are copied, without the 10 us that
    torch takes for each.
    """
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()
