// y[b, n, oy, ox] = bias[n] + sum over the active (n, c, ky, kx) of
//                   values * x[b, c, oy * sy + ky * dy - py, ox * sx + kx * dx - px]
#include <torch/csrc/stable/library.h>

#include <optional>

#include "blocked.h"
#include "conv_blocks.h"
#include "conv_geometry.h"
#include "rows.h"

namespace fedsparse {
namespace {

template <typename T>
void forward(const Conv& conv, const Index& index, const Tensor& values, const T* bias, const Tensor& x,
             Tensor& y) {
  const PaddedPlane plane = input_plane(conv);
  const auto table = input_table("conv2d", conv, plane, kLanes<T>);
  const GatherRows<T> rows(index, in_ptr<T>(values), table, input_blocks<T>(conv, plane, index));
  const Images<const T> images{in_ptr<T>(x), conv.batch, conv.channels, conv.in.y * conv.in.x};
  const Images<T> outputs{out_ptr<T>(y), conv.batch, conv.rows, conv.out.y * conv.out.x};
  const int64_t out_channel = outputs.pixels * kLanes<T>;
  const Tensor padded = torch::stable::new_zeros(x, {conv.channels * plane.lines * kLanes<T>});
  const Tensor lines = torch::stable::new_empty(x, {conv.rows * out_channel});

  Gather<T> g{bias,
              in_ptr<T>(padded),
              conv.stride.y * plane.pitch * kLanes<T>,
              out_ptr<T>(lines),
              out_channel,
              conv.out.x * kLanes<T>,
              kLanes<T>,
              conv.out.y,
              conv.out.x};
  for (int64_t block = 0; block < blocks_of<T>(conv.batch); ++block) {
    read_block(images, block, plane.place.data(), plane.lines, out_ptr<T>(padded));
    over_rows(index, [&](int64_t, int64_t begin, int64_t end) {
      rows.run(g, begin, end);
      for (int64_t n = begin; n < end; ++n)
        kernels<T>().from_lines(outputs.plane(block), g.out + n * out_channel, outputs.at(block, n));
    });
  }
}

Tensor conv2d(Tensor values_in, Tensor indptr, Tensor cols, int64_t granularity, Tensor x_in,
              std::optional<Tensor> bias_in, std::vector<int64_t> kernel, std::vector<int64_t> stride,
              std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const char* op = "conv2d";
  const Tensor values = checked_floats(op, "values", values_in, 1), x = checked_floats(op, "x", x_in, 4);
  require_same_type(op, "x", x, values);
  const Conv conv = checked_conv(op, x.size(0), x.size(1), (indptr.numel() - 1) * granularity,
                                 {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  const Index index = checked_index(op, indptr, cols, granularity, conv.channels * conv.taps());
  require(values.size(0) == index.nnz, op, ": values must have ", index.nnz, " entries.");
  std::optional<Tensor> bias;
  if (bias_in) {
    bias = checked_floats(op, "bias", *bias_in, 1);
    require_same_type(op, "bias", *bias, values);
    require(bias->size(0) == conv.rows, op, ": bias must have ", conv.rows, " entries.");
  }
  Tensor y = torch::stable::new_empty(x, {conv.batch, conv.rows, conv.out.y, conv.out.x});
  if (y.numel() == 0) return y;
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(conv, index, values, bias ? in_ptr<T>(*bias) : nullptr, x, y);
  });
  return y;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("conv2d", TORCH_BOX(&fedsparse::conv2d)); }
