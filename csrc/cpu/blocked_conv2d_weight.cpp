// conv2d_weight with gy [blocks, N, H', W', lanes] and x [blocks, C, H, W, lanes], of which the first `batch`
// images are real.  blocked_conv2d_weight_ adds to a gradient: called with some blocks after others it gives
// the bits of one call with all.
#include <torch/csrc/stable/library.h>

#include "conv_bands.h"

namespace fedsparse {
namespace {

// The rows of gy that one band of the output has; a copy with zeros where its block is not full.
template <typename T>
class GradientRows {
 public:
  GradientRows(const Conv& conv, const Band& band, const Tensor& gy)
      : planes_(planes_of(gy, conv.batch, in_ptr<T>(gy))), row_(conv.out.x) {
    const bool partial = conv.batch % kLanes<T> != 0;
    copy_ = torch::stable::new_empty(gy, {partial ? conv.rows * band.out_rows * row_ * kLanes<T> : 0});
  }

  // The first line of those rows; sets the elements from one channel to the next.
  const T* at(int64_t block, int64_t first, int64_t rows, int64_t* channel) const {
    const int64_t valid = planes_.valid(block), offset = first * row_ * kLanes<T>, lines = rows * row_;
    *channel = (valid == kLanes<T> ? planes_.lines : lines) * kLanes<T>;
    if (valid == kLanes<T>) return planes_.at(block, 0) + offset;
    T* const copy = out_ptr<T>(copy_);
    torch::stable::parallel_for(0, planes_.channels, move_grain(lines * kLanes<T>),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t n = begin; n < end; ++n)
                                    line_kernels<T>().copy_valid(planes_.at(block, n) + offset, lines, valid,
                                                                 copy + n * lines * kLanes<T>);
                                });
    return copy;
  }

 private:
  Planes<const T> planes_;
  int64_t row_;
  Tensor copy_;
};

template <typename T>
void weight_gradient(const Conv& conv, const Index& index, const Tensor& gy, const Tensor& x,
                     Tensor& dvalues) {
  const Band band = input_band<T>(conv);
  const auto table = input_table("blocked_conv2d_weight", conv, band.plane, kLanes<T>);
  const SampleRows<T> weight(index, table, input_blocks<T>(conv, band.plane, index), out_ptr<T>(dvalues));
  const Planes<const T> images = planes_of(x, conv.batch, in_ptr<T>(x));
  const Tensor padded = torch::stable::new_zeros(x, {band.size<T>()});
  const GradientRows<T> grads(conv, band, gy);

  Sample<T> s{
      in_ptr<T>(padded), conv.stride.y * band.plane.pitch * kLanes<T>, nullptr, 0, conv.out.x * kLanes<T>, 0,
      conv.out.x};
  const int64_t grain = move_grain(band.rows * band.width * kLanes<T>);
  for (int64_t block = 0; block < images.blocks; ++block)
    for (int64_t b = 0; b < band.count(); ++b) {
      torch::stable::parallel_for(0, conv.channels, grain, [&](int64_t begin, int64_t end) {
        copy_band(band, images.at(block, 0), band.first(b), images.valid(block), begin, end,
                  out_ptr<T>(padded));
      });
      s.height = band.height_of(b);
      s.grad = grads.at(block, band.first(b), s.height, &s.grad_channel);
      over_rows(index, [&](int64_t part, int64_t begin, int64_t end) { weight.add(s, part, begin, end); });
    }
  weight.finish();
}

void blocked_conv2d_weight_(Tensor dvalues, Tensor indptr, Tensor cols, Tensor gy_in, Tensor x_in,
                            int64_t batch, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                            std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const char* op = "blocked_conv2d_weight";
  const Tensor gy = checked_blocked(op, "gy", gy_in), x = checked_blocked(op, "x", x_in);
  require_same_type(op, "x", x, gy);
  require_batch(op, x, batch);
  const Conv conv = checked_conv(op, batch, x.size(1), indptr.numel() - 1, {x.size(2), x.size(3)}, kernel,
                                 stride, padding, dilation);
  require(gy.size(0) == x.size(0) && gy.size(1) == conv.rows && gy.size(2) == conv.out.y &&
              gy.size(3) == conv.out.x,
          op, ": gy must have shape (", x.size(0), ", ", conv.rows, ", ", conv.out.y, ", ", conv.out.x, ", ",
          x.size(4), ").");
  const Index index = checked_index(op, indptr, cols, conv.channels * conv.taps());
  require_same_type(op, "dvalues", dvalues, gy);
  require(dvalues.is_contiguous() && dvalues.numel() == index.nnz, op, ": dvalues must have ", index.nnz,
          " entries, one after the other.");
  if (index.nnz == 0 || gy.numel() == 0 || x.numel() == 0) return;
  by_type(gy, [&](auto zero) { weight_gradient<decltype(zero)>(conv, index, gy, x, dvalues); });
}

Tensor blocked_conv2d_weight(Tensor indptr, Tensor cols, Tensor gy, Tensor x, int64_t batch,
                             std::vector<int64_t> kernel, std::vector<int64_t> stride,
                             std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Tensor dvalues = torch::stable::new_zeros(gy, {cols.numel()});
  blocked_conv2d_weight_(dvalues, indptr, cols, gy, x, batch, kernel, stride, padding, dilation);
  return dvalues;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_conv2d_weight", TORCH_BOX(&fedsparse::blocked_conv2d_weight));
  m.impl("blocked_conv2d_weight_", TORCH_BOX(&fedsparse::blocked_conv2d_weight_));
}
