// What the files of batch norm and group norm share.
#pragma once

#include <algorithm>

#include "blocked_tensor.h"

namespace fedsparse {

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

inline void require_channels(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  require_same_type(op, name, tensor, x);
  require(tensor.dim() == 1 && tensor.size(0) == x.size(1), op, ": ", name, " must have ", x.size(1),
          " entries.");
}

}  // namespace fedsparse
