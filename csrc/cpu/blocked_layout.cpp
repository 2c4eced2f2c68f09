// to_blocked, from_blocked: between [batch, channels, height, width] and blocks of images.
// blocked_sum: sum over images and pixels, [channels].  In bfloat16 too.
#include <torch/csrc/stable/library.h>

#include "amx_conv2d.h"
#include "blocked_tensor.h"

namespace fedsparse {
namespace {

template <typename T>
void to_lines(const Plane& plane, const T* images, T* lines) {
  kernels<T>().to_lines(plane, images, nullptr, lines);
}
void to_lines(const Plane& plane, const Bf16* images, Bf16* lines) {
  line_tiles().to_lines(plane, images, lines);
}

template <typename T>
void from_lines(const Plane& plane, const T* lines, T* images) {
  kernels<T>().from_lines(plane, lines, images);
}
void from_lines(const Plane& plane, const Bf16* lines, Bf16* images) {
  line_tiles().from_lines(plane, lines, images);
}

// Sum of some lines, lane by lane.
template <typename T>
void sum_lines(const T* x, int64_t lines, T* sums) {
  line_kernels<T>().sum(x, lines, sums);
}
void sum_lines(const Bf16* x, int64_t lines, double* sums) {
  std::fill_n(sums, kLanes<Bf16>, 0.0);
  for (int64_t i = 0; i < lines * kLanes<Bf16>; ++i) sums[i % kLanes<Bf16>] += number(x[i]);
}

Tensor to_blocked(Tensor x_in) {
  const Tensor x = checked_operand("to_blocked", "x", x_in, 4);
  return by_operand(x, [&](auto zero) {
    using T = decltype(zero);
    const Images<const T> images{in_ptr<T>(x), x.size(0), x.size(1), x.size(2) * x.size(3)};
    Tensor y =
        torch::stable::new_empty(x, {blocks_of<T>(x.size(0)), x.size(1), x.size(2), x.size(3), kLanes<T>});
    const Planes<T> planes = planes_of(y, x.size(0), out_ptr<T>(y));
    over_planes<T>(y, [&](int64_t block, int64_t channel) {
      to_lines(images.plane(block), images.at(block, channel), planes.at(block, channel));
    });
    return y;
  });
}

Tensor from_blocked(Tensor x_in, int64_t batch) {
  const Tensor x = checked_blocked_operand("from_blocked", "x", x_in);
  require_batch("from_blocked", x, batch);
  return by_operand(x, [&](auto zero) {
    using T = decltype(zero);
    Tensor y = torch::stable::new_empty(x, {batch, x.size(1), x.size(2), x.size(3)});
    const Images<T> images{out_ptr<T>(y), batch, x.size(1), x.size(2) * x.size(3)};
    const Planes<const T> planes = planes_of(x, batch, in_ptr<T>(x));
    over_planes<T>(x, [&](int64_t block, int64_t channel) {
      from_lines(images.plane(block), planes.at(block, channel), images.at(block, channel));
    });
    return y;
  });
}

Tensor blocked_sum(Tensor x_in, int64_t batch) {
  const Tensor x = checked_blocked_operand("blocked_sum", "x", x_in);
  require_batch("blocked_sum", x, batch);
  return by_operand(x, [&](auto zero) {
    using T = decltype(zero);
    using Sum = std::conditional_t<std::is_same_v<T, Bf16>, double, T>;
    Tensor y = torch::stable::new_empty(x, {x.size(1)});
    const Planes<const T> planes = planes_of(x, batch, in_ptr<T>(x));
    const int64_t grain = move_grain(planes.blocks * planes.lines * kLanes<T>);
    torch::stable::parallel_for(0, planes.channels, grain, [&](int64_t begin, int64_t end) {
      Sum line[kLanes<T>];
      for (int64_t c = begin; c < end; ++c) {
        double sum = 0;
        for (int64_t block = 0; block < planes.blocks; ++block) {
          sum_lines(planes.at(block, c), planes.lines, line);
          sum += lane_sum(line, planes.valid(block));
        }
        out_ptr<T>(y)[c] = rounded<T>(sum);
      }
    });
    return y;
  });
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("to_blocked", TORCH_BOX(&fedsparse::to_blocked));
  m.impl("from_blocked", TORCH_BOX(&fedsparse::from_blocked));
  m.impl("blocked_sum", TORCH_BOX(&fedsparse::blocked_sum));
}
