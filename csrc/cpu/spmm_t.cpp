// dx[b, c] = sum over the active (n, c) of values * gy[b, n]
#include <torch/csrc/stable/library.h>

#include <optional>

#include "linear.h"

namespace fedsparse {
namespace {

Tensor spmm_t(Tensor values_in, Tensor indptr, Tensor cols, std::optional<Tensor> t_indptr,
              std::optional<Tensor> t_cols, std::optional<Tensor> t_perm, int64_t granularity,
              int64_t channels, Tensor gy_in) {
  const char* op = "spmm_t";
  const Tensor values = checked_floats(op, "values", values_in, 1), gy = checked_floats(op, "gy", gy_in, 2);
  require_same_type(op, "gy", gy, values);
  const Transposable weight{indptr, cols, t_indptr, t_cols, t_perm, granularity, channels};
  const Index index = weight.columns(op, 1);
  require(index.width == gy.size(1), op, ": gy must have ", index.width, " columns, not ", gy.size(1), ".");
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
