"""Tensors on a GPU whose images stand innermost in memory, between sparse convolutions.

The Triton convolutions take and give such tensors without a copy. Elementwise functions of torch keep the layout; batch
norm would not: `Innermost` is a Tensor whose batch norm is `ops.innermost_norm`, and an ordinary one in all else. What
a function returns is an Innermost again where it has that layout. The model's output is made an ordinary tensor by the
hook of `fedsparse.nn.region`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse import ops

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Innermost(Tensor):
    """x [B, C, H, W] with strides (1, H W B, W B, B)."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Batch norm in the layout, everything else as for a Tensor."""
        if func is F.batch_norm:
            result = _batch_norm(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return innermost(result)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return innermost(result) if type(result) is Tensor else result


def innermost(x: Tensor) -> Tensor:
    """x as an Innermost where it has the layout and Triton may run on it, else as it is."""
    if not ops.runs_triton(x.device) or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Innermost) if ops.stands_innermost(x) else x


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """NotImplemented where dtypes or shapes are such that torch's own must say or do what is right."""
    x = x.as_subclass(Tensor)
    single = all(t is None or t.dtype == torch.float32 for t in (running_mean, running_var, weight, bias))
    given = training or (running_mean is not None and running_var is not None)
    if not (x.dtype in _DTYPES and single and given and ops.stands_innermost(x) and x.numel() > x.shape[1]):
        return NotImplemented
    return ops.innermost_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
