// Statistics, and normalisation with residual addition and ReLU, of batch norm and group norm.
//
// Batch norm has one mean and deviation a channel, group norm one for each group of channels of each image.
#include "blocked_norm.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

namespace fedsparse {
namespace {

// (mean, biased variance), each [channels], over the true images: two passes over one channel at a time.
template <typename T>
void batch_moments(const Planes<const T>& x, T* mean, T* variance) {
  const double count = static_cast<double>(x.batch) * static_cast<double>(x.lines);
  over_channels<T>(x.channels, x.blocks * x.lines, [&](int64_t c) {
    T line[kLanes<T>], center[kLanes<T>];
    double sum = 0, squares = 0;
    for (int64_t block = 0; block < x.blocks; ++block) {
      line_kernels<T>().sum(x.at(block, c), x.lines, line);
      sum += lane_sum(line, x.valid(block));
    }
    mean[c] = static_cast<T>(sum / count);
    fill_line(center, mean[c]);
    for (int64_t block = 0; block < x.blocks; ++block) {
      line_kernels<T>().squares(x.at(block, c), x.lines, center, line);
      squares += lane_sum(line, x.valid(block));
    }
    // The mean is rounded: what it is off by counts as variance unless it is taken away again.
    const double off = sum / count - static_cast<double>(mean[c]);
    variance[c] = static_cast<T>(squares / count - off * off);
  });
}

std::optional<Tensor> given(const char* op, const char* name, const std::optional<Tensor>& tensor,
                            const Tensor& x) {
  if (!tensor) return std::nullopt;
  require_channels(op, name, *tensor, x);
  return checked_floats(op, name, *tensor, 1);
}

// running = (1 - momentum) running + momentum value, in the type of both.
template <typename T>
void move_running(const std::optional<Tensor>& running, int64_t channels, double momentum, const T* values,
                  double factor) {
  if (!running) return;
  T* const to = out_ptr<T>(*running);
  for (int64_t c = 0; c < channels; ++c)
    to[c] =
        to[c] * static_cast<T>(1 - momentum) + values[c] * static_cast<T>(factor) * static_cast<T>(momentum);
}

// (mean, rstd, scale, shift) of x itself, each [channels]; moves the running mean and (unbiased) variance.
std::tuple<Tensor, Tensor, Tensor, Tensor> blocked_batch_statistics(
    Tensor x_in, int64_t batch, std::optional<Tensor> weight_in, std::optional<Tensor> bias_in,
    std::optional<Tensor> running_mean, std::optional<Tensor> running_variance, double momentum, double eps) {
  const char* op = "blocked_batch_statistics";
  const Tensor x = checked_blocked(op, "x", x_in);
  require_batch(op, x, batch);
  const int64_t channels = x.size(1), count = batch * x.size(2) * x.size(3);
  const auto weight = given(op, "weight", weight_in, x), bias = given(op, "bias", bias_in, x);
  for (const auto* running : {&running_mean, &running_variance}) {
    if (!*running) continue;
    require_channels(op, "a running statistic", **running, x);
    require((*running)->is_contiguous(), op, ": a running statistic must be contiguous.");
  }
  require(!running_variance || count > 1, op,
          ": the running variance needs more than one value per channel.");
  std::tuple<Tensor, Tensor, Tensor, Tensor> all;
  auto& [mean, rstd, scale, shift] = all;
  for (Tensor* each : {&mean, &rstd, &scale, &shift}) *each = torch::stable::new_empty(x, {channels});
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    T *const m = out_ptr<T>(mean), *const r = out_ptr<T>(rstd), *const a = out_ptr<T>(scale),
             *const b = out_ptr<T>(shift);
    batch_moments<T>(planes_of(x, batch, in_ptr<T>(x)), m, r);
    move_running<T>(running_mean, channels, momentum, m, 1);
    move_running<T>(running_variance, channels, momentum, r,
                    static_cast<double>(count) / static_cast<double>(count - 1));
    for (int64_t c = 0; c < channels; ++c) {
      r[c] = T{1} / std::sqrt(r[c] + static_cast<T>(eps));
      a[c] = weight ? in_ptr<T>(*weight)[c] * r[c] : r[c];
      b[c] = (bias ? in_ptr<T>(*bias)[c] : T{0}) - m[c] * a[c];
    }
  });
  return all;
}

// (mean, biased variance), each [blocks, groups, lanes].
template <typename T>
void group_moments(const Planes<const T>& x, int64_t groups, T* means, T* variances) {
  const int64_t width = x.channels / groups;
  const double count = static_cast<double>(width) * static_cast<double>(x.lines);
  over_channels<T>(x.blocks * groups, width * x.lines, [&](int64_t i) {
    T *mean = means + i * kLanes<T>, *variance = variances + i * kLanes<T>, line[kLanes<T>];
    double sum[kLanes<T>] = {}, squares[kLanes<T>] = {};
    const auto add = [&](double* total, auto kernel) {
      for (int64_t c = 0; c < width; ++c) {
        kernel(x.at(i / groups, i % groups * width + c));
        for (int64_t lane = 0; lane < kLanes<T>; ++lane) total[lane] += static_cast<double>(line[lane]);
      }
    };
    add(sum, [&](const T* plane) { line_kernels<T>().sum(plane, x.lines, line); });
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) mean[lane] = static_cast<T>(sum[lane] / count);
    add(squares, [&](const T* plane) { line_kernels<T>().squares(plane, x.lines, mean, line); });
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const double off = sum[lane] / count - static_cast<double>(mean[lane]);
      variance[lane] = static_cast<T>(squares[lane] / count - off * off);
    }
  });
}

std::tuple<Tensor, Tensor> blocked_group_moments(Tensor x_in, int64_t groups) {
  const char* op = "blocked_group_moments";
  const Tensor x = checked_blocked(op, "x", x_in);
  require(groups > 0 && x.size(1) % groups == 0, op, ": groups must divide the ", x.size(1), " channels.");
  Tensor mean = torch::stable::new_empty(x, {x.size(0), groups, x.size(4)});
  Tensor variance = torch::stable::new_empty(x, {x.size(0), groups, x.size(4)});
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    group_moments<T>(planes_of(x, 0, in_ptr<T>(x)), groups, out_ptr<T>(mean), out_ptr<T>(variance));
  });
  return {mean, variance};
}

// A factor for each channel, [channels], or for each image and channel, [blocks, channels, lanes], as lines.
template <typename T>
class Factor {
 public:
  Factor(const char* op, const char* name, const Tensor& factor, const Tensor& x)
      : owner_(checked_floats(op, name, factor, factor.dim())), each_(factor.dim() == 3) {
    require_same_type(op, name, factor, x);
    const bool fits =
        each_ ? factor.size(0) == x.size(0) && factor.size(1) == x.size(1) && factor.size(2) == x.size(4)
              : factor.dim() == 1 && factor.size(0) == x.size(1);
    require(fits, op, ": ", name, " must have shape (", x.size(1), ") or (", x.size(0), ", ", x.size(1), ", ",
            x.size(4), ").");
  }

  const T* line(const Planes<const T>& x, int64_t block, int64_t channel, T* room) const {
    const T* data = in_ptr<T>(owner_);
    if (each_) return data + (block * x.channels + channel) * kLanes<T>;
    fill_line(room, data[channel]);
    return room;
  }

 private:
  Tensor owner_;
  bool each_;
};

// y may be x or the residual.
void blocked_norm_(Tensor y, Tensor x_in, Tensor scale_in, Tensor shift_in, std::optional<Tensor> residual_in,
                   bool relu) {
  const char* op = "blocked_norm";
  const Tensor x = checked_blocked(op, "x", x_in);
  require_shape(op, "y", y, x);
  require(y.is_contiguous(), op, ": y must be contiguous.");
  std::optional<Tensor> residual;
  if (residual_in) {
    residual = checked_blocked(op, "residual", *residual_in);
    require_shape(op, "residual", *residual, x);
  }
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Factor<T> scale(op, "scale", scale_in, x), shift(op, "shift", shift_in, x);
    const Planes<const T> planes = planes_of(x, 0, in_ptr<T>(x));
    over_planes<T>(x, [&](int64_t block, int64_t c) {
      T rooms[2][kLanes<T>];
      const T* from = planes.at(block, c);
      const int64_t offset = from - planes.data;
      line_kernels<T>().norm(
          {from, scale.line(planes, block, c, rooms[0]), shift.line(planes, block, c, rooms[1]),
           residual ? in_ptr<T>(*residual) + offset : nullptr, out_ptr<T>(y) + offset, planes.lines, relu});
    });
  });
}

Tensor blocked_norm(Tensor x_in, Tensor scale, Tensor shift, std::optional<Tensor> residual, bool relu) {
  const Tensor x = checked_blocked("blocked_norm", "x", x_in), y = torch::stable::empty_like(x);
  blocked_norm_(y, x, scale, shift, residual, relu);
  return y;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_batch_statistics", TORCH_BOX(&fedsparse::blocked_batch_statistics));
  m.impl("blocked_group_moments", TORCH_BOX(&fedsparse::blocked_group_moments));
  m.impl("blocked_norm", TORCH_BOX(&fedsparse::blocked_norm));
  m.impl("blocked_norm_", TORCH_BOX(&fedsparse::blocked_norm_));
}
