"""Convolutions (cross-correlations) with a sparse weight W [N, C, kh, kw]: conv2d, conv2d_input, conv2d_weight.

    conv2d(values, x)         y [B, N, H', W'] = W * x [B, C, H, W] (+ bias [N])
    conv2d_input(values, gy)  u [B, C, H, W], the gradient to x of <conv2d(values, x), gy>
    conv2d_weight(gy, x)      v [nnz], its gradient to the values: only at the active weights

    d values = conv2d_weight(dy, x)  or conv2d_weight(gy, du)
    d x      = conv2d_input(values, dy)  or conv2d_input(dv, gy)
    d gy     = conv2d(values, du)  or conv2d(dv, x)

H' = (H + 2 py - dy (kh - 1) - 1) // sy + 1, W' alike. Groups are not supported.
Back ends: cpu (C++, float32 and float64; strips in bfloat16 on AMX), dense, triton, condensed, reference.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.ops import algebra, amx, condensed, dispatch, strips
from fedsparse.ops.algebra import (
    FAMILIES,
    Geometry,
    How,
    Products,
    check_bias,
    check_operand,
    check_values,
    output_size,
)
from fedsparse.ops.index import Index, pick, spread
from fedsparse.ops.load import define
from fedsparse.ops.unpack import gathered, unpacked
from fedsparse.topology import Topology

Size = int | tuple[int, int]
_GEOMETRY = "int[2] kernel, int[2] stride, int[2] padding, int[2] dilation"

define(
    f"conv2d(Tensor values, Tensor indptr, Tensor cols, SymInt granularity, Tensor x, Tensor? bias, "
    f"{_GEOMETRY}) -> Tensor"
)
define(
    "conv2d_input(Tensor values, Tensor indptr, Tensor cols, Tensor? t_indptr, Tensor? t_cols, Tensor? t_perm, "
    f"SymInt granularity, SymInt channels, Tensor gy, int[2] size, {_GEOMETRY}) -> Tensor"
)
define(f"conv2d_weight(Tensor indptr, Tensor cols, SymInt granularity, Tensor gy, Tensor x, {_GEOMETRY}) -> Tensor")


@torch.library.register_fake("fedsparse::conv2d")
def _(
    values: Tensor,
    indptr: Tensor,
    cols: Tensor,
    granularity: int,
    x: Tensor,
    bias: Tensor | None,
    *geometry: tuple[int, int],
) -> Tensor:
    rows = (indptr.shape[0] - 1) * granularity
    return x.new_empty(x.shape[0], rows, *output_size((x.shape[2], x.shape[3]), geometry))


@torch.library.register_fake("fedsparse::conv2d_input")
def _(
    values: Tensor,
    indptr: Tensor,
    cols: Tensor,
    t_indptr: Tensor | None,
    t_cols: Tensor | None,
    t_perm: Tensor | None,
    granularity: int,
    channels: int,
    gy: Tensor,
    size: tuple[int, int],
    *geometry: tuple[int, int],
) -> Tensor:
    return gy.new_empty(gy.shape[0], channels, *size)


@torch.library.register_fake("fedsparse::conv2d_weight")
def _(indptr: Tensor, cols: Tensor, granularity: int, gy: Tensor, x: Tensor, *geometry: tuple[int, int]) -> Tensor:
    return gy.new_empty(cols.shape[0] * granularity)


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    kernel, stride, padding, dilation = geometry[:4]
    return F.unfold(x, kernel, dilation, padding, stride)


def _reference_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    high, wide = output_size((x.shape[2], x.shape[3]), geometry)
    weight = spread(values, index, index.channels * geometry[0][0] * geometry[0][1])
    y = (weight @ _windows(x, geometry)).unflatten(2, (high, wide))
    return y if bias is None else y + bias[:, None, None]


def _reference_transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
    kernel, stride, padding, dilation, size = geometry
    weight = spread(values, index, index.channels * kernel[0] * kernel[1])
    return F.fold(weight.T @ gy.flatten(2), size, kernel, dilation, padding, stride)


def _reference_sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    return pick(torch.einsum("bnp,bkp->nk", gy.flatten(2), _windows(x, geometry)), index)


def _dense_weight(values: Tensor, index: Index, kernel: tuple[int, int], operand: Tensor) -> Tensor:
    """The weight in the layout of its operand: cuDNN takes and gives channels_last where one of the two is."""
    flat = unpacked(values, index, index.channels * kernel[0] * kernel[1])
    weight = flat.reshape(index.rows, index.channels, *kernel)
    last = operand.is_cuda and operand.is_contiguous(memory_format=torch.channels_last) and not operand.is_contiguous()
    return weight.contiguous(memory_format=torch.channels_last) if last else weight


def _dense_gradients(gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]) -> tuple[Tensor, ...]:
    _, stride, padding, dilation = geometry[:4]
    return torch.ops.aten.convolution_backward(
        gy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, [*mask, False]
    )


def _dense_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    kernel, stride, padding, dilation = geometry[:4]
    return F.conv2d(x, _dense_weight(values, index, kernel, x), bias, stride, padding, dilation)


def _dense_transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
    shape = (gy.shape[0], index.channels, *geometry[4])
    weight = _dense_weight(values, index, geometry[0], gy)
    return _dense_gradients(gy, gy.new_empty(1).expand(shape), weight, geometry, [True, False])[0]


def _dense_sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    weight = gy.new_empty(1).expand(index.rows, index.channels, *geometry[0])
    return gathered(_dense_gradients(gy, x, weight, geometry, [False, True])[1].flatten(1), index)


def _cpu_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    if x.dtype == torch.bfloat16:
        return amx.CONVOLUTIONS.product(values, index, x, bias, geometry)
    return torch.ops.fedsparse.conv2d(values, index.indptr, index.cols, index.granularity, x, bias, *geometry[:4])


def _cpu_transposed(values: Tensor, index: Index, gy: Tensor, geometry: Geometry) -> Tensor:
    if gy.dtype == torch.bfloat16:
        return amx.CONVOLUTIONS.transposed(values, index, gy, geometry)
    *sizes, size = geometry
    return torch.ops.fedsparse.conv2d_input(values, *index, gy, size, *sizes)


def _cpu_sampled(index: Index, gy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    if x.dtype == torch.bfloat16:
        return amx.CONVOLUTIONS.sampled(index, gy, x, geometry)
    return torch.ops.fedsparse.conv2d_weight(index.indptr, index.cols, index.granularity, gy, x, *geometry[:4])


_CPU = Products(_cpu_product, _cpu_transposed, _cpu_sampled)
_DENSE = Products(_dense_product, _dense_transposed, _dense_sampled)


@cache
def _chosen_on_gpu(granularity: int, clients: bool) -> Products:
    candidates = {"triton": strips.convolutions(granularity, clients)}
    if granularity not in strips.VECTORS:
        candidates["condensed"] = condensed.convolutions(clients)
    return dispatch.products("conv2d", candidates | {"dense": _DENSE}, granularity=granularity)


FAMILIES["conv2d"] = {
    "cpu": _CPU,
    "dense": _DENSE,
    "chosen": dispatch.products("conv2d", {"cpu": _CPU, "dense": _DENSE}),
    "chosen on a GPU": _chosen_on_gpu,
    "triton": strips.convolutions,
    "condensed": lambda granularity, clients: condensed.convolutions(clients),
    "reference": Products(_reference_product, _reference_transposed, _reference_sampled),
}


def conv2d(
    values: Tensor,
    topology: Topology,
    x: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """y = W * x + bias, differentiable in values, x and bias.

    Shapes: values [nnz], x [B, C, H, W], bias [N] or None, y [B, N, H', W']; one floating dtype (that of
    autocast, where it is on) and device. ValueError otherwise, and for groups other than 1.
    """
    values, x, bias = algebra.autocast(values, x, bias)
    check_operand("conv2d", "x", x, 4, x)
    how = how_of("conv2d", topology, x, (x.shape[2], x.shape[3]), stride, padding, dilation, groups)
    check_values("conv2d", values, topology.nnz, x)
    check_bias("conv2d", bias, topology.rows, x)
    _check_channels("conv2d", "x", x, topology.channels)
    return algebra.product(how, values, x, bias, Index.of(topology))


def conv2d_input(
    values: Tensor,
    topology: Topology,
    gy: Tensor,
    size: tuple[int, int],
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of conv2d to its input of size (H, W), differentiable in values and gy.

    Shapes: values [nnz], gy [B, N, H', W'], result [B, C, H, W].
    """
    values, gy = algebra.autocast(values, gy)
    check_operand("conv2d_input", "gy", gy, 4, gy)
    how = how_of("conv2d_input", topology, gy, size, stride, padding, dilation, groups)
    check_values("conv2d_input", values, topology.nnz, gy)
    _check_gradient("conv2d_input", gy, topology, how.geometry)
    return algebra.transposed(how, values, gy, Index.of(topology))


def conv2d_weight(
    topology: Topology,
    gy: Tensor,
    x: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of conv2d to its values, only at the active weights, differentiable in gy and x.

    Shapes: gy [B, N, H', W'], x [B, C, H, W], result [nnz].
    """
    gy, x = algebra.autocast(gy, x)
    check_operand("conv2d_weight", "x", x, 4, x)
    check_operand("conv2d_weight", "gy", gy, 4, x)
    how = how_of("conv2d_weight", topology, x, (x.shape[2], x.shape[3]), stride, padding, dilation, groups)
    _check_channels("conv2d_weight", "x", x, topology.channels)
    _check_gradient("conv2d_weight", gy, topology, how.geometry)
    if x.shape[0] != gy.shape[0]:
        raise ValueError(f"conv2d_weight: x has batch {x.shape[0]}, gy has {gy.shape[0]}.")
    return algebra.sampled(how, gy, x, Index.of(topology))


def how_of(
    op: str,
    topology: Topology,
    operand: Tensor,
    size: tuple[int, int],
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> How:
    """What a call of `op` on an operand of that device and dtype runs; ValueError where the arguments do not fit."""
    if groups != 1:
        raise ValueError(f"{op}: groups must be 1, not {groups}; grouped convolutions have no sparse op.")
    if len(topology.shape) != 4:
        raise ValueError(f"{op}: the topology must have shape (N, C, kh, kw), not {topology.shape}.")
    if topology.device != operand.device:
        raise ValueError(f"{op}: the topology is on {topology.device}, the operands on {operand.device}.")
    name = algebra.backend_of(op, "conv2d", operand, topology.granularity)
    pairs = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    geometry = (topology.kernel, *pairs, size)
    if min(output_size(size, geometry)) < 1:
        raise ValueError(
            f"{op}: the kernel {topology.kernel} with dilation {pairs[2]} exceeds the padded input {size}."
        )
    return How("conv2d", name, geometry, topology.granularity)


def pair(op: str, name: str, size: Size, least: int) -> tuple[int, int]:
    """A size as (vertical, horizontal); ValueError where it is no pair of integers of at least `least`."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(n, int) and n >= least for n in both):
        raise ValueError(f"{op}: {name} must be an integer of at least {least} or two of them, not {size!r}.")
    return both


def _check_channels(op: str, name: str, operand: Tensor, channels: int) -> None:
    if operand.shape[1] != channels:
        raise ValueError(f"{op}: {name} must have {channels} channels, not {operand.shape[1]}.")


def _check_gradient(op: str, gy: Tensor, topology: Topology, geometry: Geometry) -> None:
    _check_channels(op, "gy", gy, topology.rows)
    expected = output_size(geometry[4], geometry)
    if tuple(gy.shape[2:]) != expected:
        raise ValueError(f"{op}: gy must have {expected} pixels, not {tuple(gy.shape[2:])}.")
