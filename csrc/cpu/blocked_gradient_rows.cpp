// blocked_gradient_rows: some rows of the gradient to all weights of a convolution, active or not, with gy
// [blocks, N, H', W', lanes] and x [blocks, C, H, W, lanes].
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "blocked_weight.h"
#include "winograd_rows.h"

namespace fedsparse {
namespace {

// The index of `rows` rows without zeros, in strips as long as the kernels take them.
Index full_index(const Tensor& like, int64_t rows, int64_t width) {
  int64_t group = 32;
  while (rows % group != 0) group = group > kQuad ? group / 2 : 1;
  const int64_t lists = rows / group;
  const Tensor indptr = torch::stable::new_empty(like, {lists + 1}, ScalarType::Int);
  const Tensor cols = torch::stable::new_empty(like, {lists * width}, ScalarType::Int);
  for (int64_t list = 0; list <= lists; ++list)
    out_ptr<int32_t>(indptr)[list] = static_cast<int32_t>(list * width);
  for (int64_t j = 0; j < lists * width; ++j) out_ptr<int32_t>(cols)[j] = static_cast<int32_t>(j % width);
  return checked_index("blocked_gradient_rows", indptr, cols, group, width);
}

Tensor blocked_gradient_rows(Tensor gy_in, Tensor x_in, int64_t batch, int64_t first, int64_t rows,
                             std::vector<int64_t> kernel, std::vector<int64_t> stride,
                             std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const char* op = "blocked_gradient_rows";
  const Tensor gy = checked_blocked(op, "gy", gy_in), x = checked_blocked(op, "x", x_in);
  require_same_type(op, "x", x, gy);
  require_batch(op, x, batch);
  require(first >= 0 && rows >= 0 && first + rows <= gy.size(1), op, ": gy has ", gy.size(1),
          " channels, not rows ", first, " to ", first + rows - 1, ".");
  const Conv conv =
      checked_conv(op, batch, x.size(1), rows, {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  require(gy.size(0) == x.size(0) && gy.size(2) == conv.out.y && gy.size(3) == conv.out.x, op,
          ": gy must have shape (", x.size(0), ", N, ", conv.out.y, ", ", conv.out.x, ", ", x.size(4), ").");
  const int64_t width = conv.channels * conv.taps();
  const Tensor gradient = torch::stable::new_zeros(gy, {rows, width});
  if (gradient.numel() == 0 || gy.numel() == 0 || x.numel() == 0) return gradient;
  by_type(gy, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == sizeof(float))
      if (winograd_pays(conv)) return winograd_rows(conv, x, gy, first, rows, out_ptr<float>(gradient));
    weight_gradient<T>(conv, full_index(x, rows, width), gy, x, first, out_ptr<T>(gradient));
  });
  return gradient;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_gradient_rows", TORCH_BOX(&fedsparse::blocked_gradient_rows));
}
