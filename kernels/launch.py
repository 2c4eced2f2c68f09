"""What every wrapper of a Triton kernel needs around its launch."""

import torch
import triton
from torch import Tensor

SIZES = (
    *("entries", "strips", "splits", "steps", "parts", "length", "run", "plane", "shift", "first", "width", "offset"),
    *("nnz", "rows", "groups", "blocks", "all_blocks", "channels", "high", "wide", "out_high", "out_wide"),
    *("pixels", "images", "clients"),
)
"""Arguments by whose value no kernel is compiled anew: a mask change or another batch size must not cost a compile.

Alignment does not come from them, but from pointers and from constants.
"""
_INDEX_LIMIT = 2**31


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1): its tl.dot is wrong in bfloat16."""
    return bool(triton.knobs.runtime.interpret)


def on(tensor: Tensor) -> torch.cuda.device:
    """Send launches to the tensor's device; changes nothing for a CPU tensor (Triton's interpreter)."""
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)


def check_size(op: str, *numels: int) -> None:
    """ValueError where int32 indices could not hold the elements of one client."""
    if max(numels) >= _INDEX_LIMIT:
        raise ValueError(f"{op}: a tensor of one client has {max(numels)} elements; int32 indices hold 2^31 - 1.")
