// dx[b, c] = sum over the active (n, c) of values * gy[b, n]
#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace fedsparse {
namespace {

Tensor spmm_t(Tensor values_in, Tensor t_indptr, Tensor t_cols, Tensor t_perm, Tensor gy_in) {
  const char* op = "spmm_t";
  const Tensor values = checked_floats(op, "values", values_in, 1), gy = checked_floats(op, "gy", gy_in, 2);
  require_same_type(op, "gy", gy, values);
  const Index index = checked_index(op, t_indptr, t_cols, gy.size(1), &t_perm);
  require(values.size(0) == index.nnz, op, ": values must have ", index.nnz, " entries.");
  Tensor dx = torch::stable::new_empty(gy, {gy.size(0), index.rows});
  if (dx.numel() == 0) return dx;
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    gather_linear<T>(index, in_ptr<T>(values), nullptr, gy, dx);
  });
  return dx;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("spmm_t", TORCH_BOX(&fedsparse::spmm_t)); }
