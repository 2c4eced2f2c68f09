"""The Triton kernels of this package, each in the specialisations that a ResNet-18 runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton.language as tl
from fedsparse.kernels import (
    direct,
    direct_sample,
    grow_scores,
    norm,
    pack,
    spmm,
    strip_pack,
    strip_product,
    strip_sample,
    strip_spread,
    topk,
)
from fedsparse.kernels.addresses import accumulator, search_steps
from fedsparse.kernels.addresses import precision as precision_of
from fedsparse.kernels.strip_tiles import VECTORS, product_tile, sample_tile, spread_tile

from .machine_code import Code, triton_code

TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
_SIZES = ("blocks", "channels", "high", "wide", "out_high", "out_wide")
_GEOMETRY = ("KERNEL_Y", "KERNEL_X", "STRIDE_Y", "STRIDE_X", "PADDING_Y", "PADDING_X", "DILATION_Y", "DILATION_X")
# kernel, stride, padding, dilation of the convolutions of a ResNet
GEOMETRIES = {
    "3x3": (3, 3, 1, 1, 1, 1, 1, 1),
    "3x3/2": (3, 3, 2, 2, 1, 1, 1, 1),
    "1x1/2": (1, 1, 2, 2, 0, 0, 1, 1),
    "linear": (1, 1, 1, 1, 0, 0, 1, 1),
}


@dataclass(frozen=True)
class Listed:
    """A kernel with its specialisation: `compile(arch)` makes it; `tensor_cores`: whether it is meant to use them."""

    label: str
    compile: Callable[..., Code]
    tensor_cores: bool


def _listed(
    label: str,
    kernel: Any,
    pointers: str,
    sizes: str,
    constants: dict[str, Any],
    warps: int,
    tensor_cores: bool = False,
) -> Listed:
    """pointers: "name:type ...", in order before the sizes, int32 but for eps and momentum."""
    signature = {name: f"*{kind}" for name, kind in (each.split(":") for each in pointers.split())}
    signature |= {name: "fp32" if name in ("eps", "momentum") else "i32" for name in sizes.split()}
    return Listed(label, partial(triton_code, label, kernel, signature, constants, warps), tensor_cores)


def _stored(precision: str) -> str:
    return "fp32" if precision == "tf32" else precision


def _convolution(name: str) -> dict[str, Any]:
    return dict(zip(_GEOMETRY, GEOMETRIES[name], strict=True)) | {"LANES": 16}


def strip_kernels() -> Iterator[Listed]:
    """Products of strips: V x precision, in the geometries of a ResNet."""
    plan = [(v, p, "3x3") for v in VECTORS for p in ("bf16", "tf32", "fp32")]
    plan += [(32, "bf16", g) for g in ("3x3/2", "1x1/2", "linear")] + [(32, "fp16", "3x3")]
    sizes = "entries strips " + " ".join(_SIZES)
    for vector, precision, geometry in plan:
        kind, cores = _stored(precision), precision != "fp32"
        common = _convolution(geometry) | {"V": vector, "UPCAST": False}
        common["PRECISION"] = precision_of(TYPES[precision], precision == "tf32")
        tile = product_tile(vector, TYPES[precision])
        yield _listed(
            f"strip_product V={vector} {precision} {geometry}",
            strip_product.strip_product_kernel,
            f"packed:{kind} starts:i32 cols:i32 x:{kind} bias:{kind} y:{kind}",
            sizes,
            common | {"OUTPUTS": tile.outputs, "ENTRIES": tile.entries, "STAGES": tile.stages, "HAS_BIAS": False},
            tile.warps,
            cores,
        )
        for density, entries in (("", 100), (" few entries", 10)):
            tile = sample_tile(vector, TYPES[precision], entries)
            yield _listed(
                f"strip_sample V={vector} {precision} {geometry}{density}",
                strip_sample.strip_sample_kernel,
                f"starts:i32 cols:i32 gy:{kind} x:{kind} parts:fp32",
                "entries strips splits steps " + " ".join(_SIZES),
                common | {"OUTPUTS": tile.outputs, "ENTRIES": tile.entries, "STAGES": tile.stages},
                tile.warps,
                cores,
            )


def gathering_kernels() -> Iterator[Listed]:
    """The two halves of the gradient to the input: strips to entries, and entries to channels."""
    for vector, precision in [(v, p) for v in VECTORS for p in ("bf16", "tf32", "fp32")]:
        kind = _stored(precision)
        tile = spread_tile(vector, TYPES[precision], 100)
        yield _listed(
            f"strip_spread V={vector} {precision}",
            strip_spread.strip_spread_kernel,
            f"packed:{kind} starts:i32 gy:{kind} spread:{kind}",
            "entries strips plane blocks all_blocks",
            {"LANES": 16, "V": vector, "OUTPUTS": tile.outputs, "ENTRIES": tile.entries}
            | {"PRECISION": precision_of(TYPES[precision], precision == "tf32"), "UPCAST": False},
            tile.warps,
            precision != "fp32",
        )
    for geometry in GEOMETRIES:
        yield _listed(
            f"gather of spread strips bf16 {geometry}",
            direct.direct_product_kernel,
            "values:bf16 indptr:i32 cols:i32 perm:i32 source:bf16 bias:bf16 target:bf16",
            "nnz rows " + " ".join(_SIZES) + " all_blocks",
            _convolution(geometry)
            | {"TRANSPOSED": True, "WEIGHTED": False, "HAS_BIAS": False, "ACC": tl.float32}
            | {"NONZEROS": direct.PRODUCT.nonzeros, "OUTPUTS": direct.PRODUCT.outputs},
            direct.PRODUCT.warps,
        )


def packing_kernels() -> Iterator[Listed]:
    """Values to and from packed strips."""
    steps = {"STEPS": search_steps(16), "V": 32, "ENTRIES": 32}
    yield _listed(
        "pack_strips V=32 fp32 to bf16",
        strip_pack.pack_strips_kernel,
        "values:fp32 starts:i32 packed:bf16",
        "entries strips",
        steps,
        4,
    )
    yield _listed(
        "unpack_strips V=32 to fp32",
        strip_pack.unpack_strips_kernel,
        "parts:fp32 starts:i32 values:fp32",
        "entries strips splits",
        steps,
        4,
    )


def direct_kernels() -> Iterator[Listed]:
    """Products a nonzero at a time."""
    plan = [(p, "3x3") for p in ("fp32", "bf16", "fp64")] + [("fp32", "3x3/2"), ("fp32", "1x1/2")]
    for precision, geometry in plan:
        common = _convolution(geometry) | {"ACC": accumulator(TYPES[precision])}
        for transposed in (False, True):
            yield _listed(
                f"direct_{'transposed' if transposed else 'product'} {precision} {geometry}",
                direct.direct_product_kernel,
                f"values:{precision} indptr:i32 cols:i32 perm:i32 source:{precision} "
                f"bias:{precision} target:{precision}",
                "nnz rows " + " ".join(_SIZES) + " all_blocks",
                common
                | {"TRANSPOSED": transposed, "WEIGHTED": True, "HAS_BIAS": False}
                | {"NONZEROS": direct.PRODUCT.nonzeros, "OUTPUTS": direct.PRODUCT.outputs},
                direct.PRODUCT.warps,
            )
        yield _listed(
            f"direct_sample {precision} {geometry}",
            direct_sample.direct_sample_kernel,
            f"indptr:i32 cols:i32 gy:{precision} x:{precision} parts:{'fp64' if precision == 'fp64' else 'fp32'}",
            "nnz rows groups steps " + " ".join(_SIZES),
            common
            | {"SEARCH": search_steps(512)}
            | {"NONZEROS": direct_sample.SAMPLE.nonzeros, "OUTPUTS": direct_sample.SAMPLE.outputs},
            direct_sample.SAMPLE.warps,
        )


def linear_kernels() -> Iterator[Listed]:
    """The spmm family."""
    for precision in ("fp32", "bf16", "fp16", "fp64"):
        for batch in (16, 64):
            acc = {"ACC": tl.float64 if precision == "fp64" else tl.float32}
            tile = spmm.tile("product", batch)
            for perm in (False, True):
                yield _listed(
                    f"csr_product{' transposed' if perm else ''} {precision} b{batch}",
                    spmm.csr_product_kernel,
                    f"values:{precision} indptr:i32 cols:i32 perm:i32 x_t:{precision} y:{precision}",
                    "batch rows",
                    acc | {"HAS_PERM": perm, "NONZEROS": tile.nonzeros, "BATCH": tile.batch},
                    tile.warps,
                )
            tile = spmm.tile("sample", batch)
            yield _listed(
                f"csr_sample {precision} b{batch}",
                spmm.csr_sample_kernel,
                f"g_t:{precision} x_t:{precision} indptr:i32 cols:i32 dvalues:{precision}",
                "batch rows nnz",
                acc | {"STEPS": search_steps(512), "NONZEROS": tile.nonzeros, "BATCH": tile.batch},
                tile.warps,
            )


def norm_kernels() -> Iterator[Listed]:
    """Batch norm of images that stand innermost, alone and with residual and ReLU; rows a multiple of 16 or not."""
    plans = [(kind, fused, True) for kind in ("fp32", "bf16") for fused in (False, True)] + [("bf16", True, False)]
    for kind, fused, whole in plans:
        how = {"ALIGNED": whole, "BLOCK": 1024}
        ending = f"{kind}{' relu' if fused else ''}{'' if whole else ' odd rows'}"
        channel = "mean:fp32 variance:fp32 weight:fp32"
        if not fused:
            pointers = f"x:{kind} means:fp32 squares:fp32"
            yield _listed(f"moments {ending}", norm.moments_kernel, pointers, "run steps", how, 4)
        yield _listed(
            f"norm {ending}",
            norm.norm_kernel,
            f"x:{kind} residual:{kind} {channel} bias:fp32 y:{kind} bits:u8",
            "run eps",
            {"RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
        yield _listed(
            f"norm_sums {ending}",
            norm.norm_sums_kernel,
            f"gy:{kind} bits:u8 x:{kind} mean:fp32 sums:fp32 products:fp32",
            "run steps",
            {"RELU": fused} | how,
            4,
        )
        yield _listed(
            f"norm_gradient {ending}",
            norm.norm_gradient_kernel,
            f"gy:{kind} bits:u8 x:{kind} {channel} sums:fp32 products:fp32 dx:{kind} dresidual:{kind}",
            "run eps",
            {"TRAINING": True, "RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
    yield _listed(
        "join_moments",
        norm.join_moments_kernel,
        "means:fp32 squares:fp32 mean:fp32 variance:fp32 running_mean:fp32 running_variance:fp32",
        "channels run parts length momentum",
        {"RUNNING": True, "CHANNELS": 64},
        2,
    )


def activation_kernels() -> Iterator[Listed]:
    """Packing and unpacking of activations."""
    sizes, block = "run parts steps", {"BLOCK": 1024}
    for kind, stored in (("fp32", "bf16"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp64", "fp64")):
        bits = {"BITS": 64 if kind == "fp64" else 32}
        pointers = f"x:{kind} keys:i64 lefts:i32 firsts:i64 sames:i64 bits:u8 values:{stored}"
        yield _listed(f"pack {kind} as {stored}", pack.pack_kernel, pointers, sizes, bits | block, 4)
        pointers = f"bits:u8 values:{stored} firsts:i64 x:{kind}"
        yield _listed(f"unpack {stored} as {kind}", pack.unpack_kernel, pointers, sizes, block, 4)
        if kind == stored:
            for name, kernel, pointers, more in (
                ("count_digits", pack.count_digits_kernel, f"x:{kind} keys:i64 counts:i32", " shift"),
                ("tally_magnitudes", pack.tally_magnitudes_kernel, f"x:{kind} keys:i64 above:i32 equal:i32", ""),
            ):
                yield _listed(f"{name} {kind}", kernel, pointers, sizes + more, bits | block, 4)
    yield _listed("count_bits", pack.count_bits_kernel, "bits:u8 counts:i32", sizes, block, 4)


def selection_kernels() -> Iterator[Listed]:
    """topk and growth."""
    parts, shares = "segments:i32 begins:i32 ends:i32 keys:i64", "above:i32 equal:i32"
    for kind, bits in (("fp32", 32), ("fp64", 64)):
        how = {"BITS": bits, "BLOCK": 1024}
        plan = [
            ("count_bytes", topk.count_bytes_kernel, f"scores:{kind} {parts} counts:i32", "steps shift"),
            ("tally", topk.tally_kernel, f"scores:{kind} {parts} {shares}", "steps"),
            ("take", topk.take_kernel, f"scores:{kind} {parts} lefts:i32 {shares} starts:i32 places:i64", "steps"),
        ]
        for name, kernel, pointers, sizes in plan:
            yield _listed(f"{name} {kind}", kernel, pointers, sizes, how, 4)
    yield _listed("narrow", topk.narrow_kernel, "counts:i32 firsts:i32 keys:i64 lefts:i32", "shift", {"ROWS": 16}, 4)
    yield _listed("offsets", topk.offsets_kernel, "firsts:i32 above:i32 equal:i32", "", {"BLOCK": 1024}, 4)
    for kind, vector, directed in (("fp32", 1, False), ("fp32", 32, True), ("fp64", 1, True), ("bf16", 32, False)):
        scores = "fp64" if kind == "fp64" else "fp32"
        yield _listed(
            f"score_tile V={vector} {kind}{' directed' if directed else ''}",
            grow_scores.score_tile_kernel,
            f"tile:{kind} direction:{kind} scores:{scores}",
            "width",
            {"V": vector, "DIRECTED": directed, "BLOCK": 512},
            4,
        )
    for cols in ("i32", "i16"):
        yield _listed(
            f"leave_out_active {cols}",
            grow_scores.leave_out_active_kernel,
            f"indptr:i32 cols:{cols} scores:fp32",
            "first width",
            {"BLOCK": 512},
            4,
        )


def kernels() -> list[Listed]:
    """All of them."""
    makers = (
        *(strip_kernels, gathering_kernels, packing_kernels, direct_kernels, linear_kernels, norm_kernels),
        selection_kernels,
        activation_kernels,
    )
    return [listed for maker in makers for listed in maker()]
