// conv2d with x [blocks, C, H, W, lanes] and y [blocks, N, H', W', lanes]; strips in bfloat16 too.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "amx_conv2d.h"
#include "conv_bands.h"

namespace fedsparse {
namespace {

template <typename T>
void forward(const Conv& conv, const Index& index, const Tensor& values, const T* bias, const Tensor& x,
             Tensor& y) {
  const Band band = input_band<T>(conv, index);
  const auto table = input_table("blocked_conv2d", conv, band.plane, kLanes<T>);
  const GatherRows<T> rows(index, in_ptr<T>(values), table, input_blocks<T>(conv, band.plane, index));
  const int64_t out_row = conv.out.x * kLanes<T>, out_channel = conv.out.y * out_row;
  const Gather<T> shared{bias,      nullptr,     conv.stride.y * band.plane.pitch * kLanes<T>,
                         nullptr,   out_channel, out_row,
                         kLanes<T>, 0,           conv.out.x};
  BandWork<T>(band, index, x).run([&](int64_t block, int64_t b, const T* in, int64_t begin, int64_t end) {
    Gather<T> g = shared;
    g.in = in;
    g.out = out_ptr<T>(y) + block * conv.rows * out_channel + band.first(b) * out_row;
    g.height = band.height_of(b);
    rows.run(g, begin, end);
  });
}

Tensor blocked_conv2d(Tensor values_in, Tensor indptr, Tensor cols, int64_t granularity, Tensor x_in,
                      std::optional<Tensor> bias_in, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                      std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const char* op = "blocked_conv2d";
  const Tensor values = checked_operand(op, "values", values_in, 1),
               x = checked_blocked_operand(op, "x", x_in);
  require_same_type(op, "x", x, values);
  const Conv conv = checked_conv(op, x.size(0) * x.size(4), x.size(1), (indptr.numel() - 1) * granularity,
                                 {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  const Index index = checked_index(op, indptr, cols, granularity, conv.channels * conv.taps());
  require(values.size(0) == index.nnz, op, ": values must have ", index.nnz, " entries.");
  std::optional<Tensor> bias;
  if (bias_in) {
    bias = checked_operand(op, "bias", *bias_in, 1);
    require_same_type(op, "bias", *bias, values);
    require(bias->size(0) == conv.rows, op, ": bias must have ", conv.rows, " entries.");
  }
  Tensor y = torch::stable::new_empty(x, {x.size(0), conv.rows, conv.out.y, conv.out.x, x.size(4)});
  if (y.numel() == 0) return y;
  if (is_bf16(x)) {
    amx_forward(op, conv, index, values, bias, x, y);
    return y;
  }
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(conv, index, values, bias ? in_ptr<T>(*bias) : nullptr, x, y);
  });
  return y;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_conv2d", TORCH_BOX(&fedsparse::blocked_conv2d));
}
