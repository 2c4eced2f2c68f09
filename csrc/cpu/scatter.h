// Gradient to the input of a convolution whose rows are strips.
#pragma once

#include "conv_geometry.h"
#include "lists.h"
#include "strips.h"

namespace fedsparse {

// The strips, cut by input channels into `parts` of about equal work, as the scatter kernel reads them.
template <typename T>
class ScatterStrips {
 public:
  // table[c * taps + tap] is the offset of the line that an entry adds to; entries that fill up a group add
  // zeros to `spare`.
  ScatterStrips(const Index& index, const T* values, const std::vector<int32_t>& table, int64_t channels,
                int64_t spare, int64_t parts);

  int64_t parts() const { return static_cast<int64_t>(bounds_.size()) - 1; }
  // Input channels of a part.
  int64_t first(int64_t part) const { return bounds_[part]; }
  void run(const Scatter<T>&, int64_t part) const;

 private:
  int64_t rows_, strips_;
  std::vector<int64_t> bounds_;
  std::vector<int32_t> starts_;  // strips_ + 1 of each part
  Tensor offsets_, packed_;
};

}  // namespace fedsparse
