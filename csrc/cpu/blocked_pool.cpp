// Maximum and mean over rectangles of pixels of blocked tensors, and their gradients.
//
// Output pixel (y, x) sees rows top[y] to bottom[y] and columns left[x] to right[x], ends excluded.
#include <torch/csrc/stable/library.h>

#include "blocked_tensor.h"

namespace fedsparse {
namespace {

struct Edges {
  std::vector<int64_t> top, bottom, left, right;

  Windows windows(int64_t in_width) const {
    return {top.data(),
            bottom.data(),
            left.data(),
            right.data(),
            static_cast<int64_t>(top.size()),
            static_cast<int64_t>(left.size()),
            in_width};
  }
};

void require_inside(const char* op, const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                    int64_t size) {
  require(begin.size() == end.size(), op, ": windows must have as many ends as beginnings.");
  for (size_t i = 0; i < begin.size(); ++i)
    require(begin[i] >= 0 && begin[i] < end[i] && end[i] <= size, op, ": a window must lie inside 0 to ",
            size, " and hold a pixel.");
}

void require_edges(const char* op, const Edges& edges, int64_t height, int64_t width) {
  require_inside(op, edges.top, edges.bottom, height);
  require_inside(op, edges.left, edges.right, width);
}

int64_t largest(const std::vector<int64_t>& begin, const std::vector<int64_t>& end) {
  int64_t size = 0;
  for (size_t i = 0; i < begin.size(); ++i) size = std::max(size, end[i] - begin[i]);
  return size;
}

void require_bytes(const char* op, const Edges& edges) {
  require(largest(edges.top, edges.bottom) * largest(edges.left, edges.right) <= 256, op,
          ": a window must hold at most 256 pixels.");
}

void require_gradient(const char* op, const Tensor& gy, const Edges& edges) {
  require(gy.size(2) == static_cast<int64_t>(edges.top.size()) &&
              gy.size(3) == static_cast<int64_t>(edges.left.size()),
          op, ": gy must have one pixel for each window.");
}

Tensor output_like(const Tensor& x, const Edges& edges) {
  return torch::stable::new_empty(x, {x.size(0), x.size(1), static_cast<int64_t>(edges.top.size()),
                                      static_cast<int64_t>(edges.left.size()), x.size(4)});
}

std::tuple<Tensor, Tensor> blocked_max(Tensor x_in, std::vector<int64_t> top, std::vector<int64_t> bottom,
                                       std::vector<int64_t> left, std::vector<int64_t> right) {
  const Tensor x = checked_blocked("blocked_max", "x", x_in);
  const Edges edges{top, bottom, left, right};
  require_edges("blocked_max", edges, x.size(2), x.size(3));
  require_bytes("blocked_max", edges);
  Tensor y = output_like(x, edges);
  Tensor picked = torch::stable::new_empty(x, y.sizes(), ScalarType::Byte);
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Planes<const T> in = planes_of(x, 0, in_ptr<T>(x));
    const Planes<T> out = planes_of(y, 0, out_ptr<T>(y));
    over_planes<T>(x, [&](int64_t block, int64_t c) {
      T* to = out.at(block, c);
      line_kernels<T>().max(edges.windows(x.size(3)), in.at(block, c), to,
                            out_ptr<uint8_t>(picked) + (to - out.data));
    });
  });
  return {y, picked};
}

Tensor blocked_max_backward(Tensor gy_in, Tensor picked_in, std::vector<int64_t> size,
                            std::vector<int64_t> top, std::vector<int64_t> bottom, std::vector<int64_t> left,
                            std::vector<int64_t> right) {
  const char* op = "blocked_max_backward";
  const Tensor gy = checked_blocked(op, "gy", gy_in);
  require_dims(op, "picked", picked_in, 5);
  require(picked_in.scalar_type() == ScalarType::Byte && picked_in.numel() == gy.numel(), op,
          ": picked must be uint8 and have the shape of gy.");
  const Tensor picked = torch::stable::contiguous(picked_in);
  const Edges edges{top, bottom, left, right};
  require(size.size() == 2, op, ": size must be the height and width of the input.");
  require_edges(op, edges, size[0], size[1]);
  require_gradient(op, gy, edges);
  Tensor dx = torch::stable::new_zeros(gy, {gy.size(0), gy.size(1), size[0], size[1], gy.size(4)});
  by_type(gy, [&](auto zero) {
    using T = decltype(zero);
    const Planes<const T> in = planes_of(gy, 0, in_ptr<T>(gy));
    const Planes<T> out = planes_of(dx, 0, out_ptr<T>(dx));
    over_planes<T>(dx, [&](int64_t block, int64_t c) {
      const T* from = in.at(block, c);
      line_kernels<T>().max_gradient(edges.windows(size[1]), from, in_ptr<uint8_t>(picked) + (from - in.data),
                                     out.at(block, c));
    });
  });
  return dx;
}

Tensor blocked_average(Tensor x_in, std::vector<int64_t> top, std::vector<int64_t> bottom,
                       std::vector<int64_t> left, std::vector<int64_t> right, double divisor) {
  const Tensor x = checked_blocked("blocked_average", "x", x_in);
  const Edges edges{top, bottom, left, right};
  require_edges("blocked_average", edges, x.size(2), x.size(3));
  Tensor y = output_like(x, edges);
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Planes<const T> in = planes_of(x, 0, in_ptr<T>(x));
    const Planes<T> out = planes_of(y, 0, out_ptr<T>(y));
    over_planes<T>(x, [&](int64_t block, int64_t c) {
      line_kernels<T>().average(edges.windows(x.size(3)), static_cast<T>(divisor), in.at(block, c),
                                out.at(block, c));
    });
  });
  return y;
}

Tensor blocked_average_backward(Tensor gy_in, std::vector<int64_t> size, std::vector<int64_t> top,
                                std::vector<int64_t> bottom, std::vector<int64_t> left,
                                std::vector<int64_t> right, double divisor) {
  const char* op = "blocked_average_backward";
  const Tensor gy = checked_blocked(op, "gy", gy_in);
  const Edges edges{top, bottom, left, right};
  require(size.size() == 2, op, ": size must be the height and width of the input.");
  require_edges(op, edges, size[0], size[1]);
  require_gradient(op, gy, edges);
  Tensor dx = torch::stable::new_zeros(gy, {gy.size(0), gy.size(1), size[0], size[1], gy.size(4)});
  by_type(gy, [&](auto zero) {
    using T = decltype(zero);
    const Planes<const T> in = planes_of(gy, 0, in_ptr<T>(gy));
    const Planes<T> out = planes_of(dx, 0, out_ptr<T>(dx));
    over_planes<T>(dx, [&](int64_t block, int64_t c) {
      line_kernels<T>().average_gradient(edges.windows(size[1]), static_cast<T>(divisor), in.at(block, c),
                                         out.at(block, c));
    });
  });
  return dx;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_max", TORCH_BOX(&fedsparse::blocked_max));
  m.impl("blocked_max_backward", TORCH_BOX(&fedsparse::blocked_max_backward));
  m.impl("blocked_average", TORCH_BOX(&fedsparse::blocked_average));
  m.impl("blocked_average_backward", TORCH_BOX(&fedsparse::blocked_average_backward));
}
