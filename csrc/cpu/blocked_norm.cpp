// Statistics, normalisation with residual addition and ReLU, and the backward of batch norm and group norm.
//
// Batch norm has one mean and deviation a channel, group norm one for each group of channels of each image.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

#include "blocked_tensor.h"

namespace fedsparse {
namespace {

template <typename T>
void fill_line(T* line, T value) {
  std::fill(line, line + kLanes<T>, value);
}

// Calls body(first, last) over channels (or groups of them) that are each `lines` long, on torch's threads.
template <typename T, typename Body>
void over_channels(int64_t count, int64_t lines, const Body& body) {
  torch::stable::parallel_for(0, count, move_grain(lines * kLanes<T>), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

void require_channels(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  require_same_type(op, name, tensor, x);
  require(tensor.dim() == 1 && tensor.size(0) == x.size(1), op, ": ", name, " must have ", x.size(1),
          " entries.");
}

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

// The tensors of a backward, and what happens at one plane of them.
template <typename T>
struct Backward {
  Planes<const T> x;
  const T *gy, *out;
  T *masked, *dx;  // masked: where the gradient of the residual goes, or null
  bool relu;

  void sums(int64_t block, int64_t c, const T* scale, const T* shift, const T* mean, T* lines) const {
    const int64_t at = x.at(block, c) - x.data;
    line_kernels<T>().norm_sums({gy + at, x.data + at, scale, shift, mean, out ? out + at : nullptr,
                                 masked ? masked + at : nullptr, lines, x.lines, relu});
  }

  void apply(int64_t block, int64_t c, const T* scale, const T* shift, const T* mean, const T* a, const T* b,
             const T* k) const {
    const int64_t at = x.at(block, c) - x.data;
    line_kernels<T>().norm_apply({masked ? masked + at : gy + at, x.data + at, scale, shift, mean, a, b, k,
                                  dx + at, x.lines, relu && !masked});
  }
};

struct Checked {
  Tensor gy, x;
  std::optional<Tensor> out;
  Tensor dx, masked;

  // over_x: dx is written in the place of x.
  Checked(const char* op, const Tensor& gy_in, const Tensor& x_in, const std::optional<Tensor>& out_in,
          bool relu, bool over_x)
      : gy(checked_blocked(op, "gy", gy_in)), x(checked_blocked(op, "x", x_in)) {
    require_shape(op, "gy", gy, x);
    if (out_in) {
      require(relu, op, ": out is for a norm with ReLU.");
      out = checked_blocked(op, "out", *out_in);
      require_shape(op, "out", *out, x);
    }
    require(!over_x || x_in.is_contiguous(), op, ": x must be contiguous.");
    dx = over_x ? x : torch::stable::empty_like(x);
    masked = out ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  }

  template <typename T>
  Backward<T> as(int64_t batch, bool relu) const {
    return {planes_of(x, batch, in_ptr<T>(x)),  in_ptr<T>(gy),  out ? in_ptr<T>(*out) : nullptr,
            out ? out_ptr<T>(masked) : nullptr, out_ptr<T>(dx), relu};
  }
};

// dx = w s (m - mean(m) - z mean(m z)) with z = (x - mean) s and s = rstd; without the means in eval mode.
template <typename T>
void batch_backward(const Backward<T>& t, const T* mean, const T* rstd, const T* weight, const T* bias,
                    bool training, T* dweight, T* dbias) {
  const double count = static_cast<double>(t.x.batch) * static_cast<double>(t.x.lines);
  over_channels<T>(t.x.channels, t.x.blocks * t.x.lines, [&](int64_t c) {
    T lines[6][kLanes<T>], two[2 * kLanes<T>];
    T *scale = lines[0], *shift = lines[1], *center = lines[2], *b = lines[4], *k = lines[5];
    const T slope = weight[c] * rstd[c];
    fill_line(scale, slope);
    fill_line(shift, bias[c] - mean[c] * slope);
    fill_line(center, mean[c]);
    double sum = 0, product = 0;
    for (int64_t block = 0; block < t.x.blocks; ++block) {
      t.sums(block, c, scale, shift, center, two);
      sum += lane_sum(two, t.x.valid(block));
      product += lane_sum(two + kLanes<T>, t.x.valid(block));
    }
    const double s = static_cast<double>(rstd[c]);
    dbias[c] = static_cast<T>(sum);
    dweight[c] = static_cast<T>(product * s);
    fill_line(b, static_cast<T>(training ? -static_cast<double>(slope) * s * s * product / count : 0));
    fill_line(k, static_cast<T>(training ? -static_cast<double>(slope) * sum / count : 0));
    for (int64_t block = 0; block < t.x.blocks; ++block) t.apply(block, c, scale, shift, center, scale, b, k);
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Gradients batch_norm_backward(bool over_x, Tensor gy, Tensor x, Tensor mean_in, Tensor rstd_in,
                              Tensor weight_in, Tensor bias_in, std::optional<Tensor> out, bool relu,
                              bool training, int64_t batch) {
  const char* op = "blocked_batch_norm_backward";
  const Checked t(op, gy, x, out, relu, over_x);
  require_batch(op, t.x, batch);
  const Tensor mean = checked_floats(op, "mean", mean_in, 1), rstd = checked_floats(op, "rstd", rstd_in, 1),
               weight = checked_floats(op, "weight", weight_in, 1),
               bias = checked_floats(op, "bias", bias_in, 1);
  require_channels(op, "mean", mean, t.x);
  require_channels(op, "rstd", rstd, t.x);
  require_channels(op, "weight", weight, t.x);
  require_channels(op, "bias", bias, t.x);
  Tensor dweight = torch::stable::empty_like(mean), dbias = torch::stable::empty_like(mean);
  by_type(t.x, [&](auto zero) {
    using T = decltype(zero);
    batch_backward<T>(t.as<T>(batch, relu), in_ptr<T>(mean), in_ptr<T>(rstd), in_ptr<T>(weight),
                      in_ptr<T>(bias), training, out_ptr<T>(dweight), out_ptr<T>(dbias));
  });
  return {t.dx, dweight, dbias, t.masked};
}

// The same image by image and group by group; `sums` [blocks, channels, 2, lanes] holds what dweight and
// dbias are made of.
template <typename T>
void group_backward(const Backward<T>& t, int64_t groups, const T* mean_at, const T* rstd_at, const T* weight,
                    const T* bias, T* sums) {
  const int64_t width = t.x.channels / groups;
  const T count = static_cast<T>(width * t.x.lines);
  over_channels<T>(t.x.blocks * groups, width * t.x.lines, [&](int64_t i) {
    const int64_t block = i / groups, first = i % groups * width;
    const T *mean = mean_at + i * kLanes<T>, *rstd = rstd_at + i * kLanes<T>;
    T scale[kLanes<T>], shift[kLanes<T>], b[kLanes<T>] = {}, k[kLanes<T>] = {};
    const auto factors = [&](int64_t c) {
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        scale[lane] = weight[c] * rstd[lane];
        shift[lane] = bias[c] - mean[lane] * scale[lane];
      }
    };
    for (int64_t c = first; c < first + width; ++c) {
      T* two = sums + (block * t.x.channels + c) * 2 * kLanes<T>;
      factors(c);
      t.sums(block, c, scale, shift, mean, two);
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        k[lane] += weight[c] * two[lane];
        b[lane] += weight[c] * two[kLanes<T> + lane];
      }
    }
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      k[lane] *= -rstd[lane] / count;
      b[lane] *= -rstd[lane] * rstd[lane] * rstd[lane] / count;
    }
    for (int64_t c = first; c < first + width; ++c) {
      factors(c);
      t.apply(block, c, scale, shift, mean, scale, b, k);
    }
  });
}

// dweight and dbias [channels] of the sums, over the true images.
template <typename T>
void add_images(const Planes<const T>& x, int64_t groups, const T* rstd, const T* sums, T* dweight,
                T* dbias) {
  for (int64_t c = 0; c < x.channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t block = 0; block < x.blocks; ++block) {
      const T* two = sums + (block * x.channels + c) * 2 * kLanes<T>;
      const T* s = rstd + (block * groups + c / (x.channels / groups)) * kLanes<T>;
      for (int64_t lane = 0; lane < x.valid(block); ++lane) {
        sum += static_cast<double>(two[lane]);
        product += static_cast<double>(two[kLanes<T> + lane]) * static_cast<double>(s[lane]);
      }
    }
    dbias[c] = static_cast<T>(sum);
    dweight[c] = static_cast<T>(product);
  }
}

Gradients group_norm_backward(bool over_x, Tensor gy, Tensor x, Tensor mean_in, Tensor rstd_in,
                              Tensor weight_in, Tensor bias_in, std::optional<Tensor> out, bool relu,
                              int64_t batch) {
  const char* op = "blocked_group_norm_backward";
  const Checked t(op, gy, x, out, relu, over_x);
  require_batch(op, t.x, batch);
  const Tensor mean = checked_floats(op, "mean", mean_in, 3), rstd = checked_floats(op, "rstd", rstd_in, 3),
               weight = checked_floats(op, "weight", weight_in, 1),
               bias = checked_floats(op, "bias", bias_in, 1);
  const int64_t groups = mean.size(1);
  require(
      groups > 0 && t.x.size(1) % groups == 0 && mean.size(0) == t.x.size(0) && mean.size(2) == t.x.size(4),
      op, ": mean must have shape (blocks, groups, lanes).");
  require_same_type(op, "mean", mean, t.x);
  require_shape(op, "rstd", rstd, mean);
  require_channels(op, "weight", weight, t.x);
  require_channels(op, "bias", bias, t.x);
  Tensor dweight = torch::stable::empty_like(weight), dbias = torch::stable::empty_like(weight);
  const Tensor sums = torch::stable::new_empty(t.x, {t.x.size(0), t.x.size(1), 2, t.x.size(4)});
  by_type(t.x, [&](auto zero) {
    using T = decltype(zero);
    const Backward<T> backward = t.as<T>(batch, relu);
    group_backward<T>(backward, groups, in_ptr<T>(mean), in_ptr<T>(rstd), in_ptr<T>(weight), in_ptr<T>(bias),
                      out_ptr<T>(sums));
    add_images<T>(backward.x, groups, in_ptr<T>(rstd), in_ptr<T>(sums), out_ptr<T>(dweight),
                  out_ptr<T>(dbias));
  });
  return {t.dx, dweight, dbias, t.masked};
}

Gradients blocked_batch_norm_backward(Tensor gy, Tensor x, Tensor mean, Tensor rstd, Tensor weight,
                                      Tensor bias, std::optional<Tensor> out, bool relu, bool training,
                                      int64_t batch) {
  return batch_norm_backward(false, gy, x, mean, rstd, weight, bias, out, relu, training, batch);
}

Gradients blocked_group_norm_backward(Tensor gy, Tensor x, Tensor mean, Tensor rstd, Tensor weight,
                                      Tensor bias, std::optional<Tensor> out, bool relu, int64_t batch) {
  return group_norm_backward(false, gy, x, mean, rstd, weight, bias, out, relu, batch);
}

// dx in the place of x; returns (dweight, dbias).
std::tuple<Tensor, Tensor> blocked_batch_norm_backward_(Tensor gy, Tensor x, Tensor mean, Tensor rstd,
                                                        Tensor weight, Tensor bias, bool relu, bool training,
                                                        int64_t batch) {
  const Gradients all =
      batch_norm_backward(true, gy, x, mean, rstd, weight, bias, std::nullopt, relu, training, batch);
  return {std::get<1>(all), std::get<2>(all)};
}

std::tuple<Tensor, Tensor> blocked_group_norm_backward_(Tensor gy, Tensor x, Tensor mean, Tensor rstd,
                                                        Tensor weight, Tensor bias, bool relu,
                                                        int64_t batch) {
  const Gradients all = group_norm_backward(true, gy, x, mean, rstd, weight, bias, std::nullopt, relu, batch);
  return {std::get<1>(all), std::get<2>(all)};
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_batch_statistics", TORCH_BOX(&fedsparse::blocked_batch_statistics));
  m.impl("blocked_group_moments", TORCH_BOX(&fedsparse::blocked_group_moments));
  m.impl("blocked_norm", TORCH_BOX(&fedsparse::blocked_norm));
  m.impl("blocked_norm_", TORCH_BOX(&fedsparse::blocked_norm_));
  m.impl("blocked_batch_norm_backward", TORCH_BOX(&fedsparse::blocked_batch_norm_backward));
  m.impl("blocked_group_norm_backward", TORCH_BOX(&fedsparse::blocked_group_norm_backward));
  m.impl("blocked_batch_norm_backward_", TORCH_BOX(&fedsparse::blocked_batch_norm_backward_));
  m.impl("blocked_group_norm_backward_", TORCH_BOX(&fedsparse::blocked_group_norm_backward_));
}
