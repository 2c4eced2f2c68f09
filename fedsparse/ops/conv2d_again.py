"""A convolution that the backward pass runs once more: conv2d_again."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsparse.ops.conv2d import Size, how_of
from fedsparse.ops.index import Index
from fedsparse.topology import Topology


def conv2d_again(
    values: Tensor,
    topology: Topology,
    x: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> Callable[[Tensor], Tensor]:
    """conv2d of these arguments as a function of an x like this one, by the back end of now; no gradients.

    x, which is not held, is in autocast's dtype where that is on; values and bias are brought into it in each call.
    The function raises RuntimeError where values or bias were changed in place meanwhile.
    """
    how = how_of("conv2d", topology, x, (x.shape[2], x.shape[3]), stride, padding, dilation, 1)
    index, held = Index.of(topology), [each.detach() for each in (values, bias) if each is not None]
    versions, dtype = [each._version for each in held], x.dtype

    def again(x: Tensor) -> Tensor:
        if [each._version for each in held] != versions:
            raise RuntimeError("a sparse weight was changed in place between the forward and the backward pass")
        weight, *shift = (each.to(dtype) for each in held)
        with torch.no_grad():
            return how.raw.product(weight, index, x, shift[0] if shift else None, how.geometry)

    return again
