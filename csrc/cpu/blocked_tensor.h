// Tensors that stay in blocks of images: [blocks, channels, height, width, lanes], 16 lanes in fp32, 8 in
// fp64.
#pragma once

#include "blocked.h"
#include "check.h"
#include "lines.h"

namespace fedsparse {

inline int64_t lanes_of(const Tensor& tensor) {
  return by_type(tensor, [](auto zero) { return kLanes<decltype(zero)>; });
}

// float32 or float64, five dimensions, whole lines.
inline Tensor checked_blocked(const char* op, const char* name, const Tensor& tensor) {
  const Tensor blocked = checked_floats(op, name, tensor, 5);
  require(blocked.size(4) == lanes_of(blocked), op, ": ", name, " must have ", lanes_of(blocked),
          " images in its last dimension, not ", blocked.size(4), ".");
  return blocked;
}

inline void require_batch(const char* op, const Tensor& blocked, int64_t batch) {
  const int64_t lanes = lanes_of(blocked);
  require(batch >= 0 && (batch + lanes - 1) / lanes == blocked.size(0), op, ": batch ", batch, " is not in ",
          blocked.size(0), " blocks of ", lanes, " images.");
}

inline void require_shape(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  require_same_type(op, name, tensor, like);
  bool same = tensor.dim() == like.dim();
  for (int64_t d = 0; same && d < like.dim(); ++d) same = tensor.size(d) == like.size(d);
  require(same, op, ": ", name, " must have the shape of the other operands.");
}

// A blocked tensor, one plane (block, channel) at a time.
template <typename T>
struct Planes {
  T* data;
  int64_t batch, blocks, channels, lines;  // lines of one plane: height * width

  T* at(int64_t block, int64_t channel) const {
    return data + (block * channels + channel) * lines * kLanes<T>;
  }
  int64_t valid(int64_t block) const { return std::min(kLanes<T>, batch - block * kLanes<T>); }
};

template <typename T>
Planes<T> planes_of(const Tensor& blocked, int64_t batch, T* data) {
  return {data, batch, blocked.size(0), blocked.size(1), blocked.size(2) * blocked.size(3)};
}

// Calls body(block, channel) for every plane, on torch's threads.
template <typename T, typename Body>
void over_planes(const Tensor& blocked, const Body& body) {
  const int64_t channels = blocked.size(1), lines = blocked.size(2) * blocked.size(3);
  torch::stable::parallel_for(0, blocked.size(0) * channels, move_grain(lines * kLanes<T>),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) body(i / channels, i % channels);
                              });
}

// Sum of a line's lanes that hold an image.
template <typename T>
double lane_sum(const T* line, int64_t valid) {
  double sum = 0;
  for (int64_t lane = 0; lane < valid; ++lane) sum += static_cast<double>(line[lane]);
  return sum;
}

}  // namespace fedsparse
