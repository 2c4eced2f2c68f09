"""What packs, counts, selects, sums and standardises in the list of Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator

from fedsparse.kernels import grow_scores, pack, relu, sparse_mean, standardise, topk
from fedsparse.kernels.addresses import accumulator

from .listed import TYPES, Listed, listed


def activation_kernels() -> Iterator[Listed]:
    """Packing and unpacking of activations, and ReLU with its bits."""
    for kind, whole in (("fp32", True), ("bf16", True), ("bf16", False), ("fp64", True)):
        how, ending = {"ALIGNED": whole, "BLOCK": 1024}, f"{kind}{'' if whole else ' odd size'}"
        yield listed(f"relu {ending}", relu.relu_kernel, f"x:{kind} y:{kind} bits:u8", "run limit", how, 4)
        pointers = f"gy:{kind} bits:u8 dx:{kind}"
        yield listed(f"relu_gradient {ending}", relu.relu_gradient_kernel, pointers, "run", how, 4)
    sizes, block = "run parts steps", {"BLOCK": 1024}
    for kind, stored in (("fp32", "bf16"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp64", "fp64")):
        bits = {"BITS": 64 if kind == "fp64" else 32}
        pointers = f"x:{kind} keys:i64 lefts:i32 firsts:i64 sames:i64 bits:u8 values:{stored}"
        yield listed(f"pack {kind} as {stored}", pack.pack_kernel, pointers, sizes, bits | block, 4)
        pointers = f"bits:u8 values:{stored} firsts:i64 x:{kind}"
        yield listed(f"unpack {stored} as {kind}", pack.unpack_kernel, pointers, sizes, block, 4)
        if kind == stored:
            for name, kernel, pointers, more in (
                ("count_digits", pack.count_digits_kernel, f"x:{kind} keys:i64 counts:i32", " shift"),
                ("tally_magnitudes", pack.tally_magnitudes_kernel, f"x:{kind} keys:i64 above:i32 equal:i32", ""),
            ):
                yield listed(f"{name} {kind}", kernel, pointers, sizes + more, bits | block, 4)
    yield listed("count_bits", pack.count_bits_kernel, "bits:u8 counts:i32", sizes, block, 4)


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
            yield listed(f"{name} {kind}", kernel, pointers, sizes, how, 4)
    yield listed("narrow", topk.narrow_kernel, "counts:i32 firsts:i32 keys:i64 lefts:i32", "shift", {"ROWS": 16}, 4)
    yield listed("offsets", topk.offsets_kernel, "firsts:i32 above:i32 equal:i32", "", {"BLOCK": 1024}, 4)
    for kind, vector, directed in (("fp32", 1, False), ("fp32", 32, True), ("fp64", 1, True), ("bf16", 32, False)):
        scores = "fp64" if kind == "fp64" else "fp32"
        yield listed(
            f"score_tile V={vector} {kind}{' directed' if directed else ''}",
            grow_scores.score_tile_kernel,
            f"tile:{kind} direction:{kind} scores:{scores}",
            "width",
            {"V": vector, "DIRECTED": directed, "BLOCK": 512},
            4,
        )
    for cols in ("i32", "i16"):
        yield listed(
            f"leave_out_active {cols}",
            grow_scores.leave_out_active_kernel,
            f"indptr:i32 cols:{cols} scores:fp32",
            "first width",
            {"BLOCK": 512},
            4,
        )


def report_kernels() -> Iterator[Listed]:
    """Sums of clients' reports."""
    block = {"BLOCK": 512}
    yield listed("count_union", sparse_mean.count_union_kernel, "bits:u8 counts:i32", "run clients", block, 4)
    yield listed(
        "add_reports",
        sparse_mean.add_reports_kernel,
        "bits:u8 values:fp32 firsts:i64 scales:fp64 weights:i64 starts:i64 places:i64 sums:i64 totals:i64",
        "run clients",
        block,
        4,
        fusion=False,
    )


def standardising_kernels() -> Iterator[Listed]:
    """Weights of NSConv."""
    for kind in ("fp32", "fp64"):
        how = {"LEAST": 1e-4, "ACC": accumulator(TYPES[kind]), "BLOCK": 512}
        rows = f"values:{kind} gain:{kind} starts:i32"
        pointers = f"{rows} out:{kind}"
        yield listed(f"standardise {kind}", standardise.standardise_kernel, pointers, "", how, 4)
        pointers = f"g:{kind} {rows} dvalues:{kind} dgain:{kind}"
        yield listed(f"standardise_gradient {kind}", standardise.standardise_gradient_kernel, pointers, "", how, 4)
