"""The norms of images that stand innermost in the list of Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator

from fedsparse.kernels import group_norm, group_norm_backward, moments, norm, norm_backward

from .listed import Listed, listed


def batch_norm_kernels() -> Iterator[Listed]:
    """Batch norm of images that stand innermost, alone and with residual and ReLU; rows a multiple of 16 or not."""
    plans = [(kind, fused, True) for kind in ("fp32", "bf16") for fused in (False, True)] + [("bf16", True, False)]
    for kind, fused, whole in plans:
        how = {"ALIGNED": whole, "BLOCK": 1024}
        ending = f"{kind}{' relu' if fused else ''}{'' if whole else ' odd rows'}"
        channel = "mean:fp32 variance:fp32 weight:fp32"
        if not fused:
            pointers = f"x:{kind} means:fp32 squares:fp32"
            yield listed(f"moments {ending}", moments.moments_kernel, pointers, "run steps", how, 4)
        yield listed(
            f"norm {ending}",
            norm.norm_kernel,
            f"x:{kind} residual:{kind} {channel} bias:fp32 y:{kind} bits:u8",
            "run eps",
            {"RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
        yield listed(
            f"norm_sums {ending}",
            norm_backward.norm_sums_kernel,
            f"gy:{kind} bits:u8 x:{kind} mean:fp32 sums:fp32 products:fp32",
            "run steps",
            {"RELU": fused} | how,
            4,
        )
        yield listed(
            f"norm_gradient {ending}",
            norm_backward.norm_gradient_kernel,
            f"gy:{kind} bits:u8 x:{kind} {channel} sums:fp32 products:fp32 dx:{kind} dresidual:{kind}",
            "run eps",
            {"TRAINING": True, "RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
    yield listed(
        "join_moments",
        moments.join_moments_kernel,
        "means:fp32 squares:fp32 mean:fp32 variance:fp32 running_mean:fp32 running_variance:fp32",
        "channels run parts length momentum",
        {"RUNNING": True, "CHANNELS": 64},
        2,
    )


def group_norm_kernels() -> Iterator[Listed]:
    """Group norm likewise; images a multiple of 16 or not."""
    plans = [(kind, fused, True) for kind in ("fp32", "bf16") for fused in (False, True)] + [("bf16", True, False)]
    sizes, statistics = "pixels images width", "mean:fp32 variance:fp32 weight:fp32"
    for kind, fused, whole in plans:
        how = {"ALIGNED": whole, "LANES": 64, "PIXELS": 16}
        ending = f"{kind}{' relu' if fused else ''}{'' if whole else ' odd rows'}"
        if not fused:
            pointers = f"x:{kind} means:fp32 squares:fp32"
            yield listed(
                f"group_moments {ending}", group_norm.group_moments_kernel, pointers, "rows images steps", how, 4
            )
        yield listed(
            f"group_norm {ending}",
            group_norm.group_norm_kernel,
            f"x:{kind} residual:{kind} {statistics} bias:fp32 y:{kind} bits:u8",
            f"{sizes} eps",
            {"RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
        yield listed(
            f"group_sums {ending}",
            group_norm_backward.group_sums_kernel,
            f"gy:{kind} bits:u8 x:{kind} mean:fp32 sums:fp32 products:fp32",
            f"{sizes} steps",
            {"RELU": fused} | how,
            4,
        )
        yield listed(
            f"group_gradient {ending}",
            group_norm_backward.group_gradient_kernel,
            f"gy:{kind} bits:u8 x:{kind} {statistics} sums:fp32 products:fp32 dx:{kind} dresidual:{kind}",
            f"{sizes} eps",
            {"RESIDUAL": fused, "RELU": fused} | how,
            4,
        )
