"""The products of sparse weights in the list of Triton kernels: convolutions and linear layers, three passes each."""

from __future__ import annotations

from collections.abc import Iterator

import triton.language as tl
from fedsparse.kernels import direct, direct_sample, spmm, strip_pack, strip_product, strip_sample, strip_spread
from fedsparse.kernels.addresses import accumulator, search_steps
from fedsparse.kernels.addresses import precision as precision_of
from fedsparse.kernels.strip_tiles import VECTORS, product_tile, sample_tile, spread_tile

from .listed import GEOMETRIES, SIZES, TYPES, Listed, convolution, listed, stored


def strip_kernels() -> Iterator[Listed]:
    """Products of strips: V x precision, in the geometries of a ResNet."""
    plan = [(v, p, "3x3") for v in VECTORS for p in ("bf16", "tf32", "fp32")]
    plan += [(32, "bf16", g) for g in ("3x3/2", "1x1/2", "linear")] + [(32, "fp16", "3x3")]
    sizes = "entries strips " + " ".join(SIZES)
    for vector, precision, geometry in plan:
        kind, cores = stored(precision), precision != "fp32"
        common = convolution(geometry) | {"V": vector, "UPCAST": False}
        common["PRECISION"] = precision_of(TYPES[precision], precision == "tf32")
        tile = product_tile(vector, TYPES[precision])
        yield listed(
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
            yield listed(
                f"strip_sample V={vector} {precision} {geometry}{density}",
                strip_sample.strip_sample_kernel,
                f"starts:i32 cols:i32 gy:{kind} x:{kind} parts:fp32",
                "entries strips splits steps " + " ".join(SIZES),
                common | {"OUTPUTS": tile.outputs, "ENTRIES": tile.entries, "STAGES": tile.stages},
                tile.warps,
                cores,
            )


def gathering_kernels() -> Iterator[Listed]:
    """The two halves of the gradient to the input: strips to entries, and entries to channels."""
    for vector, precision in [(v, p) for v in VECTORS for p in ("bf16", "tf32", "fp32")]:
        kind = stored(precision)
        tile = spread_tile(vector, TYPES[precision], 100)
        yield listed(
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
        yield listed(
            f"gather of spread strips bf16 {geometry}",
            direct.direct_product_kernel,
            "values:bf16 indptr:i32 cols:i32 perm:i32 source:bf16 bias:bf16 target:bf16",
            "nnz rows " + " ".join(SIZES) + " all_blocks",
            convolution(geometry)
            | {"TRANSPOSED": True, "WEIGHTED": False, "HAS_BIAS": False, "ACC": tl.float32}
            | {"NONZEROS": direct.PRODUCT.nonzeros, "OUTPUTS": direct.PRODUCT.outputs},
            direct.PRODUCT.warps,
        )


def packing_kernels() -> Iterator[Listed]:
    """Values to and from packed strips."""
    steps = {"STEPS": search_steps(16), "V": 32, "ENTRIES": 32}
    yield listed(
        "pack_strips V=32 fp32 to bf16",
        strip_pack.pack_strips_kernel,
        "values:fp32 starts:i32 packed:bf16",
        "entries strips",
        steps,
        4,
    )
    yield listed(
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
        common = convolution(geometry) | {"ACC": accumulator(TYPES[precision])}
        for transposed in (False, True):
            yield listed(
                f"direct_{'transposed' if transposed else 'product'} {precision} {geometry}",
                direct.direct_product_kernel,
                f"values:{precision} indptr:i32 cols:i32 perm:i32 source:{precision} "
                f"bias:{precision} target:{precision}",
                "nnz rows " + " ".join(SIZES) + " all_blocks",
                common
                | {"TRANSPOSED": transposed, "WEIGHTED": True, "HAS_BIAS": False}
                | {"NONZEROS": direct.PRODUCT.nonzeros, "OUTPUTS": direct.PRODUCT.outputs},
                direct.PRODUCT.warps,
            )
        yield listed(
            f"direct_sample {precision} {geometry}",
            direct_sample.direct_sample_kernel,
            f"indptr:i32 cols:i32 gy:{precision} x:{precision} parts:{'fp64' if precision == 'fp64' else 'fp32'}",
            "nnz rows groups steps " + " ".join(SIZES),
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
                yield listed(
                    f"csr_product{' transposed' if perm else ''} {precision} b{batch}",
                    spmm.csr_product_kernel,
                    f"values:{precision} indptr:i32 cols:i32 perm:i32 x_t:{precision} y:{precision}",
                    "batch rows",
                    acc | {"HAS_PERM": perm, "NONZEROS": tile.nonzeros, "BATCH": tile.batch},
                    tile.warps,
                )
            tile = spmm.tile("sample", batch)
            yield listed(
                f"csr_sample {precision} b{batch}",
                spmm.csr_sample_kernel,
                f"g_t:{precision} x_t:{precision} indptr:i32 cols:i32 dvalues:{precision}",
                "batch rows nnz",
                acc | {"STEPS": search_steps(512), "NONZEROS": tile.nonzeros, "BATCH": tile.batch},
                tile.warps,
            )
