"""Sparse ops: products with a weight that exists only at its active places.

    linear       spmm, spmm_t, sddmm                       each a gradient of the others
    convolution  conv2d, conv2d_input, conv2d_weight       likewise
    layout       unpack, gather                            values to the dense weight and back
    selection    topk, topk_segmented, grow_scores
    activations  pack_activation, relu                     what is kept of them for the backward pass

`use_backend` forces a back end, `active_backend` says which one runs.
"""

from fedsparse.ops.backend import BACKENDS, active_backend, use_backend
from fedsparse.ops.conv2d import conv2d, conv2d_input, conv2d_weight
from fedsparse.ops.grow_scores import grow_scores
from fedsparse.ops.load import compiled, load_libraries
from fedsparse.ops.pack_activation import PackedActivation, pack_activation
from fedsparse.ops.relu_bits import relu
from fedsparse.ops.spmm import sddmm, spmm, spmm_t
from fedsparse.ops.topk import topk, topk_segmented
from fedsparse.ops.unpack import gather, unpack

load_libraries()

__all__ = [
    "BACKENDS",
    "PackedActivation",
    "active_backend",
    "compiled",
    "conv2d",
    "conv2d_input",
    "conv2d_weight",
    "gather",
    "grow_scores",
    "pack_activation",
    "relu",
    "sddmm",
    "spmm",
    "spmm_t",
    "topk",
    "topk_segmented",
    "unpack",
    "use_backend",
]
