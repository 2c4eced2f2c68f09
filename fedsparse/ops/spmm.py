"""Products of a sparse linear weight W [N, C] with a batch: spmm, spmm_t, sddmm.

    spmm(values, x)     y  [B, N] = x [B, C] W^T (+ bias [N])       d values = sddmm(dy, x)   d x  = spmm_t(values, dy)
    spmm_t(values, gy)  u  [B, C] = gy [B, N] W                     d values = sddmm(gy, du)  d gy = spmm(values, du)
    sddmm(gy, x)        v  [nnz]  = sum_b gy[b, n] x[b, c], active  d gy = spmm(dv, x)        d x  = spmm_t(dv, gy)

Back ends: cpu (C++, float32 and float64), dense, triton, condensed, reference.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.ops import algebra, condensed, dispatch, strips
from fedsparse.ops.algebra import FAMILIES, Geometry, How, Products, check_bias, check_operand, check_values
from fedsparse.ops.index import Index, pick, single_columns, single_rows, spread
from fedsparse.ops.load import define
from fedsparse.ops.unpack import gathered, unpacked
from fedsparse.topology import Topology

define("spmm(Tensor values, Tensor indptr, Tensor cols, SymInt granularity, Tensor x, Tensor? bias) -> Tensor")
define(
    "spmm_t(Tensor values, Tensor indptr, Tensor cols, Tensor? t_indptr, Tensor? t_cols, Tensor? t_perm, "
    "SymInt granularity, SymInt channels, Tensor gy) -> Tensor"
)
define("sddmm(Tensor indptr, Tensor cols, SymInt granularity, Tensor gy, Tensor x) -> Tensor")


@torch.library.register_fake("fedsparse::spmm")
def _(values: Tensor, indptr: Tensor, cols: Tensor, granularity: int, x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], (indptr.shape[0] - 1) * granularity)


@torch.library.register_fake("fedsparse::spmm_t")
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
) -> Tensor:
    return gy.new_empty(gy.shape[0], channels)


@torch.library.register_fake("fedsparse::sddmm")
def _(indptr: Tensor, cols: Tensor, granularity: int, gy: Tensor, x: Tensor) -> Tensor:
    return gy.new_empty(cols.shape[0] * granularity)


def _reference_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, _: Geometry) -> Tensor:
    y = x @ spread(values, index, index.channels).T
    return y if bias is None else y + bias


def _reference_transposed(values: Tensor, index: Index, gy: Tensor, _: Geometry) -> Tensor:
    return gy @ spread(values, index, index.channels)


def _reference_sampled(index: Index, gy: Tensor, x: Tensor, _: Geometry) -> Tensor:
    return pick(gy.T @ x, index)


def _dense_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, _: Geometry) -> Tensor:
    return F.linear(x, unpacked(values, index, index.channels), bias)


def _dense_transposed(values: Tensor, index: Index, gy: Tensor, _: Geometry) -> Tensor:
    return gy @ unpacked(values, index, index.channels)


def _dense_sampled(index: Index, gy: Tensor, x: Tensor, _: Geometry) -> Tensor:
    return gathered(gy.T @ x, index)


def _cpu_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, _: Geometry) -> Tensor:
    return torch.ops.fedsparse.spmm(values, index.indptr, index.cols, index.granularity, x, bias)


def _cpu_transposed(values: Tensor, index: Index, gy: Tensor, _: Geometry) -> Tensor:
    return torch.ops.fedsparse.spmm_t(values, *index, gy)


def _cpu_sampled(index: Index, gy: Tensor, x: Tensor, _: Geometry) -> Tensor:
    return torch.ops.fedsparse.sddmm(index.indptr, index.cols, index.granularity, gy, x)


def _triton_product(values: Tensor, index: Index, x: Tensor, bias: Tensor | None, _: Geometry) -> Tensor:
    from fedsparse.kernels.spmm import csr_product

    y = csr_product(values, *single_rows(index), None, x)
    return y if bias is None else y + bias


def _triton_transposed(values: Tensor, index: Index, gy: Tensor, _: Geometry) -> Tensor:
    from fedsparse.kernels.spmm import csr_product

    return csr_product(values, *single_columns(index), gy)


def _triton_sampled(index: Index, gy: Tensor, x: Tensor, _: Geometry) -> Tensor:
    from fedsparse.kernels.spmm import csr_sample

    return csr_sample(gy, x, *single_rows(index))


_TRITON = Products(_triton_product, _triton_transposed, _triton_sampled)
_CPU = Products(_cpu_product, _cpu_transposed, _cpu_sampled)
_DENSE = Products(_dense_product, _dense_transposed, _dense_sampled)


@cache
def _triton(granularity: int, clients: bool) -> Products:
    """The CSR kernels for single weights of one client, else convolutions of 1 x 1 images."""
    if granularity not in strips.VECTORS and not clients:
        return _TRITON
    return strips.as_linear(strips.convolutions(granularity, clients, linear=True))


@cache
def _condensed(_: int, clients: bool) -> Products:
    return strips.as_linear(condensed.convolutions(clients, linear=True))


@cache
def _chosen_on_gpu(granularity: int, clients: bool) -> Products:
    candidates = {"triton": _triton(granularity, clients)}
    if granularity not in strips.VECTORS:
        candidates["condensed"] = _condensed(granularity, clients)
    return dispatch.products("linear", candidates | {"dense": _DENSE}, granularity=granularity)


FAMILIES["linear"] = {
    "cpu": _CPU,
    "dense": _DENSE,
    "chosen": dispatch.products("linear", {"cpu": _CPU, "dense": _DENSE}),
    "chosen on a GPU": _chosen_on_gpu,
    "triton": _triton,
    "condensed": _condensed,
    "reference": Products(_reference_product, _reference_transposed, _reference_sampled),
}


def spmm(values: Tensor, topology: Topology, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + bias, differentiable in values, x and bias.

    Shapes: values [nnz], x [B, C], bias [N] or None, y [B, N]; one floating dtype (that of autocast where it is
    on) and device. ValueError otherwise.
    """
    values, x, bias = algebra.autocast(values, x, bias)
    how = _how("spmm", topology, x)
    check_operand("spmm", "x", x, 2, x)
    check_values("spmm", values, topology.nnz, x)
    check_bias("spmm", bias, topology.rows, x)
    _check_width("spmm", "x", x, topology.channels)
    return algebra.product(how, values, x, bias, Index.of(topology))


def spmm_t(values: Tensor, topology: Topology, gy: Tensor) -> Tensor:
    """Gradient of spmm to its input, dx = gy W, differentiable in values and gy.

    Shapes: values [nnz], gy [B, N], dx [B, C].
    """
    values, gy = algebra.autocast(values, gy)
    how = _how("spmm_t", topology, gy)
    check_operand("spmm_t", "gy", gy, 2, gy)
    check_values("spmm_t", values, topology.nnz, gy)
    _check_width("spmm_t", "gy", gy, topology.rows)
    return algebra.transposed(how, values, gy, Index.of(topology))


def sddmm(topology: Topology, gy: Tensor, x: Tensor) -> Tensor:
    """Gradient of spmm to its values, gy^T x at the active weights only, differentiable in gy and x.

    Shapes: gy [B, N], x [B, C], result [nnz].
    """
    gy, x = algebra.autocast(gy, x)
    how = _how("sddmm", topology, gy)
    check_operand("sddmm", "gy", gy, 2, gy)
    check_operand("sddmm", "x", x, 2, gy)
    _check_width("sddmm", "gy", gy, topology.rows)
    _check_width("sddmm", "x", x, topology.channels)
    if x.shape[0] != gy.shape[0]:
        raise ValueError(f"sddmm: x has batch {x.shape[0]}, gy has {gy.shape[0]}.")
    return algebra.sampled(how, gy, x, Index.of(topology))


def _how(op: str, topology: Topology, operand: Tensor) -> How:
    if len(topology.shape) != 2:
        raise ValueError(f"{op}: the topology must have shape (N, C), not {topology.shape}.")
    if topology.device != operand.device:
        raise ValueError(f"{op}: the topology is on {topology.device}, the operands on {operand.device}.")
    return How("linear", algebra.backend_of(op, "linear", operand), (), topology.granularity)


def _check_width(op: str, name: str, operand: Tensor, width: int) -> None:
    if operand.shape[1] != width:
        raise ValueError(f"{op}: {name} must have {width} columns, not {operand.shape[1]}.")
