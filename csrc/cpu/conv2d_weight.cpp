// dvalues[j] = sum over images and output pixels of gy[b, n, oy, ox] * x[b, c, oy * sy + ky * dy - py, ...]
// for the j-th
//              active weight (n, c, ky, kx): exactly [nnz], never the dense gradient.
#include <torch/csrc/stable/library.h>

#include "blocked.h"
#include "conv_blocks.h"
#include "conv_geometry.h"
#include "rows.h"

namespace fedsparse {
namespace {

template <typename T>
void weight_gradient(const Conv& conv, const Index& index, const Tensor& gy, const Tensor& x,
                     Tensor& dvalues) {
  const PaddedPlane plane = input_plane(conv);
  const auto table = input_table("conv2d_weight", conv, plane, kLanes<T>);
  const SampleRows<T> rows(index, table, input_blocks<T>(conv, plane, index), out_ptr<T>(dvalues));
  const Images<const T> images{in_ptr<T>(x), conv.batch, conv.channels, conv.in.y * conv.in.x};
  const Images<const T> grads{in_ptr<T>(gy), conv.batch, conv.rows, conv.out.y * conv.out.x};
  const Tensor padded = torch::stable::new_zeros(x, {conv.channels * plane.lines * kLanes<T>});
  const Tensor lines = torch::stable::new_empty(x, {conv.rows * grads.pixels * kLanes<T>});

  Sample<T> s{in_ptr<T>(padded),
              conv.stride.y * plane.pitch * kLanes<T>,
              in_ptr<T>(lines),
              grads.pixels * kLanes<T>,
              conv.out.x * kLanes<T>,
              conv.out.y,
              conv.out.x};
  for (int64_t block = 0; block < blocks_of<T>(conv.batch); ++block) {
    read_block(images, block, plane.place.data(), plane.lines, out_ptr<T>(padded));
    read_block(grads, block, nullptr, grads.pixels, out_ptr<T>(lines));
    over_rows(index, [&](int64_t part, int64_t begin, int64_t end) { rows.add(s, part, begin, end); });
  }
  rows.finish();
}

Tensor conv2d_weight(Tensor indptr, Tensor cols, int64_t granularity, Tensor gy_in, Tensor x_in,
                     std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
                     std::vector<int64_t> dilation) {
  const char* op = "conv2d_weight";
  const Tensor gy = checked_floats(op, "gy", gy_in, 4), x = checked_floats(op, "x", x_in, 4);
  require_same_type(op, "x", x, gy);
  const Conv conv = checked_conv(op, x.size(0), x.size(1), (indptr.numel() - 1) * granularity,
                                 {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  require(gy.size(0) == conv.batch && gy.size(1) == conv.rows && gy.size(2) == conv.out.y &&
              gy.size(3) == conv.out.x,
          op, ": gy must have shape (", conv.batch, ", ", conv.rows, ", ", conv.out.y, ", ", conv.out.x,
          ").");
  const Index index = checked_index(op, indptr, cols, granularity, conv.channels * conv.taps());
  Tensor dvalues = torch::stable::new_zeros(gy, {index.nnz});
  if (index.nnz == 0 || gy.numel() == 0 || x.numel() == 0) return dvalues;
  by_type(gy, [&](auto zero) { weight_gradient<decltype(zero)>(conv, index, gy, x, dvalues); });
  return dvalues;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("conv2d_weight", TORCH_BOX(&fedsparse::conv2d_weight));
}
