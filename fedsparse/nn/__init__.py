"""Sparse layers, and the ways from a dense model to a sparse one and back."""

import fedsparse.nn.region_functions
import fedsparse.nn.region_norms  # noqa: F401
from fedsparse.nn.cohort import Cohort
from fedsparse.nn.convert import densify, explain, prunable, sparse_layers, sparsify, weight_shapes
from fedsparse.nn.growth import Growth, add_gradients, collect_growth, growth_search, visit_gradients
from fedsparse.nn.keeping import keep_activations
from fedsparse.nn.layers import SparseConv2d, SparseLinear
from fedsparse.nn.level import Level, Levels, parse_levels
from fedsparse.nn.norms import batch_norms, refresh_norms
from fedsparse.nn.region import Blocked, use_region
from fedsparse.nn.scaled_pruning import standardise
from fedsparse.nn.sparse_layer import SparseLayer
from fedsparse.ops.dispatch import dense_passes

__all__ = [
    "Blocked",
    "Cohort",
    "Growth",
    "Level",
    "Levels",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "add_gradients",
    "batch_norms",
    "collect_growth",
    "dense_passes",
    "densify",
    "explain",
    "growth_search",
    "keep_activations",
    "parse_levels",
    "prunable",
    "refresh_norms",
    "sparse_layers",
    "sparsify",
    "standardise",
    "use_region",
    "visit_gradients",
    "weight_shapes",
]
