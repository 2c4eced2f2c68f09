"""The Triton kernels of this package, each in the specialisations that a ResNet-18 runs."""

from __future__ import annotations

from .listed import Listed
from .norm_kernels import batch_norm_kernels, group_norm_kernels
from .product_kernels import direct_kernels, gathering_kernels, linear_kernels, packing_kernels, strip_kernels
from .selection_kernels import activation_kernels, report_kernels, selection_kernels, standardising_kernels


def kernels() -> list[Listed]:
    """All of them."""
    products = (strip_kernels, gathering_kernels, packing_kernels, direct_kernels, linear_kernels)
    norms = (batch_norm_kernels, group_norm_kernels, standardising_kernels)
    others = (selection_kernels, activation_kernels, report_kernels)
    return [listed for maker in (*products, *norms, *others) for listed in maker()]
