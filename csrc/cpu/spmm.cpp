// y[b, n] = bias[n] + sum over the active (n, c) of values * x[b, c]
#include <torch/csrc/stable/library.h>

#include <optional>

#include "linear.h"

namespace fedsparse {
namespace {

Tensor spmm(Tensor values_in, Tensor indptr, Tensor cols, int64_t granularity, Tensor x_in,
            std::optional<Tensor> bias_in) {
  const char* op = "spmm";
  const Tensor values = checked_floats(op, "values", values_in, 1), x = checked_floats(op, "x", x_in, 2);
  require_same_type(op, "x", x, values);
  const Index index = checked_index(op, indptr, cols, granularity, x.size(1));
  require(values.size(0) == index.nnz, op, ": values must have ", index.nnz, " entries.");
  std::optional<Tensor> bias;
  if (bias_in) {
    bias = checked_floats(op, "bias", *bias_in, 1);
    require_same_type(op, "bias", *bias, values);
    require(bias->size(0) == index.rows, op, ": bias must have ", index.rows, " entries.");
  }
  Tensor y = torch::stable::new_empty(x, {x.size(0), index.rows});
  if (y.numel() == 0) return y;
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    gather_linear<T>(index, in_ptr<T>(values), bias ? in_ptr<T>(*bias) : nullptr, x, y);
  });
  return y;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("spmm", TORCH_BOX(&fedsparse::spmm)); }
