// How many consecutive rows of a weight share their columns: what the strip kernels are chosen by.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "lists.h"

namespace fedsparse {
namespace {

int64_t strip_rows(Tensor indptr, Tensor cols, int64_t granularity) {
  return checked_index("strip_rows", indptr, cols, granularity, std::numeric_limits<int32_t>::max()).strip;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("strip_rows", TORCH_BOX(&fedsparse::strip_rows)); }
