// The gradient to the weights of a convolution over blocked tensors.
#pragma once

#include "conv_bands.h"

namespace fedsparse {

// The pixel rows that one band of the output has, of conv.rows channels of gy from `first_channel` on; a copy
// with zeros where its block is not full.
template <typename T>
class GradientRows {
 public:
  GradientRows(const Conv& conv, const Band& band, const Tensor& gy, int64_t first_channel)
      : planes_(planes_of(gy, conv.batch, in_ptr<T>(gy))),
        first_(first_channel),
        channels_(conv.rows),
        row_(conv.out.x) {
    const bool partial = conv.batch % kLanes<T> != 0;
    copy_ = torch::stable::new_empty(gy, {partial ? conv.rows * band.out_rows * row_ * kLanes<T> : 0});
  }

  // The first line of those rows; sets the elements from one channel to the next.
  const T* at(int64_t block, int64_t first, int64_t rows, int64_t* channel) const {
    const int64_t valid = planes_.valid(block), offset = first * row_ * kLanes<T>, lines = rows * row_;
    *channel = (valid == kLanes<T> ? planes_.lines : lines) * kLanes<T>;
    if (valid == kLanes<T>) return planes_.at(block, first_) + offset;
    T* const copy = out_ptr<T>(copy_);
    torch::stable::parallel_for(0, channels_, move_grain(lines * kLanes<T>), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        line_kernels<T>().copy_valid(planes_.at(block, first_ + n) + offset, lines, valid,
                                     copy + n * lines * kLanes<T>);
    });
    return copy;
  }

 private:
  Planes<const T> planes_;
  int64_t first_, channels_, row_;
  Tensor copy_;
};

// Adds the gradient at the index's weights to `gradient`; row r of the index is channel first_channel + r of
// gy.
template <typename T>
void weight_gradient(const Conv& conv, const Index& index, const Tensor& gy, const Tensor& x,
                     int64_t first_channel, T* gradient) {
  const Band band = input_band<T>(conv, index);
  const auto table = input_table("blocked_conv2d_weight", conv, band.plane, kLanes<T>);
  const SampleRows<T> weight(index, table, input_blocks<T>(conv, band.plane, index), gradient);
  const Planes<const T> images = planes_of(x, conv.batch, in_ptr<T>(x));
  const Tensor padded = torch::stable::new_zeros(x, {band.size<T>()});
  const GradientRows<T> grads(conv, band, gy, first_channel);

  Sample<T> s{
      in_ptr<T>(padded), conv.stride.y * band.plane.pitch * kLanes<T>, nullptr, 0, conv.out.x * kLanes<T>, 0,
      conv.out.x};
  const int64_t grain = move_grain(band.rows * band.width * kLanes<T>);
  for (int64_t block = 0; block < images.blocks; ++block)
    for (int64_t b = 0; b < band.count(); ++b) {
      torch::stable::parallel_for(0, static_cast<int64_t>(band.read.size()), grain,
                                  [&](int64_t begin, int64_t end) {
                                    copy_band(band, images.at(block, 0), band.first(b), images.valid(block),
                                              begin, end, out_ptr<T>(padded));
                                  });
      s.height = band.height_of(b);
      s.grad = grads.at(block, band.first(b), s.height, &s.grad_channel);
      over_rows(index, [&](int64_t part, int64_t begin, int64_t end) { weight.add(s, part, begin, end); });
    }
  weight.finish();
}

}  // namespace fedsparse
