// The gradients of batch norm and group norm with residual addition and ReLU (`blocked_norm.cpp`).
#include <torch/csrc/stable/library.h>

#include <optional>

#include "blocked_norm.h"

namespace fedsparse {
namespace {

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
  m.impl("blocked_batch_norm_backward", TORCH_BOX(&fedsparse::blocked_batch_norm_backward));
  m.impl("blocked_group_norm_backward", TORCH_BOX(&fedsparse::blocked_group_norm_backward));
  m.impl("blocked_batch_norm_backward_", TORCH_BOX(&fedsparse::blocked_batch_norm_backward_));
  m.impl("blocked_group_norm_backward_", TORCH_BOX(&fedsparse::blocked_group_norm_backward_));
}
