"""Random sparse weights and operands on the GPU, and the comparison with float64 on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsparse import ops
from fedsparse.topology import Topology

# |out - ref| / |ref|. A wrong index is off by about 1; vendor libraries may add half types' partial sums rounded.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def topology(shape: tuple[int, ...], density: float, seed: int = 3) -> Topology:
    """On the CPU; with several rows the second is empty, and the last place is active."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    if shape[0] > 2 and density < 1:
        mask[1] = False
    mask.reshape(-1)[-1] = True
    return Topology.from_mask(mask)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values on the CPU, rounded to `dtype`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poison() -> None:
    """Fill the caching allocator's free memory with NaN: what an op does not write shows."""
    held = [torch.full((2**size,), torch.nan, device="cuda") for size in range(8, 24)]
    del held


def error(out: Tensor, expected: Tensor) -> float:
    """Relative error; NaN if `out` holds one."""
    assert out.shape == expected.shape
    scale = expected.norm().item()
    difference = (out.double().cpu() - expected).norm().item()
    return difference / scale if scale else difference


def reference(run: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """The reference back end in float64 on the CPU."""
    with ops.use_backend("reference"):
        return run(*(operand.double() for operand in operands))


def assert_on_gpu(
    backend: str, run: Callable[[Topology], Callable[..., Tensor]], t: Topology, *operands: Tensor
) -> None:
    """run(topology)(operands) on that back end and the GPU against the reference, twice with the same bits."""
    expected = reference(run(t), *operands)
    on_device = [operand.cuda() for operand in operands]
    poison()
    with ops.use_backend(backend):
        out = run(t.to("cuda"))(*on_device)
        again = run(t.to("cuda"))(*on_device)
    assert out.is_cuda
    assert out.dtype == operands[0].dtype
    assert error(out, expected) <= LIMITS[out.dtype]
    if backend in ("triton", "condensed"):
        assert torch.equal(out, again)
