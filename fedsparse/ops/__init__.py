"""Sparse ops: products with a weight that exists only at its active places.

    linear       spmm, spmm_t, sddmm                       each a gradient of the others
    convolution  conv2d, conv2d_input, conv2d_weight       likewise
    layout       unpack, gather                            values to the dense weight and back
    masks        changed, index_map, transposed            a change of the mask
    selection    topk, topk_segmented, grow_scores, GrowSearch
    reports      sparse_sum, sparse_mean: of clients with different masks
    activations  pack_activation, relu                     what is kept of them for the backward pass
    weights      standardise: of NSConv, row by row
    innermost    innermost_norm, innermost_group_norm: norms of what the Triton convolutions return
    blocked      blocked_conv2d, batch_norm, group_norm, blocked_max, blocked_average: on images in blocks

`use_backend` forces a back end, `active_backend` says which one runs; on the CPU each pass takes the faster of sparse
kernels and dense torch (`dispatch`), and `measuring` times both.
"""

from fedsparse.ops.backend import BACKENDS, active_backend, is_forced, runs_triton, use_backend
from fedsparse.ops.blocked import from_blocked, to_blocked
from fedsparse.ops.blocked_conv2d import blocked_conv2d
from fedsparse.ops.blocked_norm import batch_norm, group_norm
from fedsparse.ops.blocked_pool import blocked_average, blocked_max
from fedsparse.ops.blocked_statistics import batch_statistics, given_statistics, group_moments
from fedsparse.ops.conv2d import conv2d, conv2d_input, conv2d_weight
from fedsparse.ops.conv2d_again import conv2d_again
from fedsparse.ops.dispatch import measuring
from fedsparse.ops.grow_scores import GrowSearch, grow_scores, tiles
from fedsparse.ops.innermost_group_norm import innermost_group_norm
from fedsparse.ops.innermost_norm import (
    innermost_norm,
    innermost_normed,
    innermost_statistics,
    stands_innermost,
)
from fedsparse.ops.load import compiled, load_libraries
from fedsparse.ops.masks import changed, index_map, transposed
from fedsparse.ops.pack_activation import PackedActivation, pack_activation
from fedsparse.ops.relu_bits import relu
from fedsparse.ops.sparse_mean import sparse_mean, sparse_sum
from fedsparse.ops.spmm import sddmm, spmm, spmm_t
from fedsparse.ops.standardise import standardise
from fedsparse.ops.topk import topk, topk_segmented
from fedsparse.ops.unpack import gather, unpack

load_libraries()

__all__ = [
    "BACKENDS",
    "GrowSearch",
    "PackedActivation",
    "active_backend",
    "batch_norm",
    "batch_statistics",
    "blocked_average",
    "blocked_conv2d",
    "blocked_max",
    "changed",
    "compiled",
    "conv2d",
    "conv2d_again",
    "conv2d_input",
    "conv2d_weight",
    "from_blocked",
    "gather",
    "given_statistics",
    "group_moments",
    "group_norm",
    "grow_scores",
    "index_map",
    "innermost_group_norm",
    "innermost_norm",
    "innermost_normed",
    "innermost_statistics",
    "is_forced",
    "measuring",
    "pack_activation",
    "relu",
    "runs_triton",
    "sddmm",
    "sparse_mean",
    "sparse_sum",
    "spmm",
    "spmm_t",
    "standardise",
    "stands_innermost",
    "tiles",
    "to_blocked",
    "topk",
    "topk_segmented",
    "transposed",
    "unpack",
    "use_backend",
]
