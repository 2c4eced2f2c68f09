// conv2d_weight with gy [blocks, N, H', W', lanes] and x [blocks, C, H, W, lanes], of which the first `batch`
// images are real.  blocked_conv2d_weight_ adds to a gradient: called with some blocks after others it gives
// the bits of one call with all.  In bfloat16 there is only the whole gradient, of strips.
#include <torch/csrc/stable/library.h>

#include "amx_conv2d.h"
#include "blocked_weight.h"

namespace fedsparse {
namespace {

constexpr const char* op = "blocked_conv2d_weight";

// dvalues += the gradient, or in bfloat16 dvalues = the gradient.
void add_gradient(Tensor dvalues, Tensor indptr, Tensor cols, int64_t granularity, Tensor gy_in, Tensor x_in,
                  int64_t batch, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                  std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Tensor gy = checked_blocked_operand(op, "gy", gy_in), x = checked_blocked_operand(op, "x", x_in);
  require_same_type(op, "x", x, gy);
  require_batch(op, x, batch);
  const Conv conv = checked_conv(op, batch, x.size(1), (indptr.numel() - 1) * granularity,
                                 {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  require(gy.size(0) == x.size(0) && gy.size(1) == conv.rows && gy.size(2) == conv.out.y &&
              gy.size(3) == conv.out.x,
          op, ": gy must have shape (", x.size(0), ", ", conv.rows, ", ", conv.out.y, ", ", conv.out.x, ", ",
          x.size(4), ").");
  const Index index = checked_index(op, indptr, cols, granularity, conv.channels * conv.taps());
  require_same_type(op, "dvalues", dvalues, gy);
  require(dvalues.is_contiguous() && dvalues.numel() == index.nnz, op, ": dvalues must have ", index.nnz,
          " entries, one after the other.");
  if (index.nnz == 0 || gy.numel() == 0 || x.numel() == 0) return;
  if (is_bf16(gy)) return amx_weight_gradient(op, conv, index, gy, x, dvalues);
  by_type(gy, [&](auto zero) {
    using T = decltype(zero);
    weight_gradient<T>(conv, index, gy, x, 0, out_ptr<T>(dvalues));
  });
}

void blocked_conv2d_weight_(Tensor dvalues, Tensor indptr, Tensor cols, int64_t granularity, Tensor gy,
                            Tensor x, int64_t batch, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                            std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  require(!is_bf16(gy), op, "_: sums of parts would be rounded to bfloat16; give float32 or float64.");
  add_gradient(dvalues, indptr, cols, granularity, gy, x, batch, kernel, stride, padding, dilation);
}

Tensor blocked_conv2d_weight(Tensor indptr, Tensor cols, int64_t granularity, Tensor gy, Tensor x,
                             int64_t batch, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                             std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Tensor dvalues = torch::stable::new_zeros(gy, {cols.numel() * granularity});
  add_gradient(dvalues, indptr, cols, granularity, gy, x, batch, kernel, stride, padding, dilation);
  return dvalues;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_conv2d_weight", TORCH_BOX(&fedsparse::blocked_conv2d_weight));
  m.impl("blocked_conv2d_weight_", TORCH_BOX(&fedsparse::blocked_conv2d_weight_));
}
