"""NSConv: the convolution that takes the place of convolution and batch norm, and keeps its input pruned.

    y = w^ * x + bias,   w^ = gain (w - mean) / sqrt(sum (w - mean)^2)      over each filter's active weights

which is the weight standardisation gain (w - mean) / (std sqrt(N)) of Huang et al., CVPR 2024 (FedMef), N the number
of the filter's active weights. It needs no statistics of a batch, so it works for batches of any size, and it centres
activations so that few of large magnitude carry them: at the level "pruned" (`fedsparse.nn.level`) the forward pass
uses the exact input, of it only those are kept, and the gradient of the weights is computed from that.

Departures from the paper, which leaves these open: the gain is a parameter of each filter; the bias takes the place of
batch norm's shift; the sum of squares is at least `LEAST`, so that a filter of one active weight, or of equal ones,
gives 0. The gradient by which inactive weights grow is that to w^.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fedsparse import ops
from fedsparse.nn.activation_store import pruned_saves
from fedsparse.nn.layers import SparseConv2d
from fedsparse.nn.level import DENSE, Level
from fedsparse.nn.stand_in import StandIn
from fedsparse.topology import Topology

LEAST = 1e-4


class NSSparseConv2d(SparseConv2d):
    """NSConv with a sparse weight. values: the w of the formula; gain: [N]."""

    gain: nn.Parameter

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, topology: Topology) -> "NSSparseConv2d":
        """Keep the active weights of an NSConv2d; it standardises over those that are left."""
        layer = super().from_dense(conv, topology)
        assert isinstance(layer, NSSparseConv2d)
        layer.gain = nn.Parameter(conv.get_parameter("gain").detach().clone())
        return layer

    def used(self) -> Tensor:
        """The standardised values."""
        return ops.standardise(self.values, self.gain, self.topology.row_starts(), LEAST)

    def dense_weight(self) -> Tensor:
        """The dense weight that the convolution is made with."""
        return self.topology.unpack(self.used().detach())


class PrunedConv2d(nn.Conv2d):
    """nn.Conv2d, any groups, that keeps its input as `level` says; `sparsify` makes a SparseConv2d of it."""

    sparse_class: type[SparseConv2d] = SparseConv2d
    level: Level = DENSE

    def __init__(self, conv: nn.Conv2d) -> None:
        sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(conv.in_channels, conv.out_channels, *sizes, conv.groups, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def used(self) -> Tensor:
        """The weight [N, C / groups, kh, kw] that the convolution is made with."""
        return self.weight

    def forward(self, x: Any) -> Tensor:
        """x: [B, C, H, W], or in blocks, which the layer leaves."""
        x = x.leave("conv2d") if isinstance(x, StandIn) else x
        weight, store = self.used(), self.level.store
        if store is None or not (torch.is_grad_enabled() and weight.requires_grad):
            return self._conv_forward(x, weight, self.bias)
        with pruned_saves(x, store) as (x, _):
            return self._conv_forward(x, weight, self.bias)


class NSConv2d(PrunedConv2d):
    """NSConv with a dense weight, any groups; `sparsify` makes an NSSparseConv2d of it."""

    sparse_class = NSSparseConv2d

    def __init__(self, conv: nn.Conv2d, shift: Tensor, gain: float = 1.0) -> None:
        super().__init__(conv)
        self.bias = nn.Parameter(shift.detach().clone())
        self.gain = nn.Parameter(torch.full_like(self.bias, gain))

    def used(self) -> Tensor:
        """The standardised weight."""
        w = self.weight.flatten(1)
        centred = w - w.mean(1, keepdim=True)
        unit = centred * centred.square().sum(1, keepdim=True).clamp(min=LEAST).rsqrt()
        return (unit * self.gain[:, None]).view_as(self.weight)
