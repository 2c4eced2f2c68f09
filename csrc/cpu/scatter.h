// Gradient to the input of a convolution whose rows are strips, found in the arrays of the weight's
// transpose.
#pragma once

#include "conv_geometry.h"
#include "lists.h"
#include "strips.h"

namespace fedsparse {

// V, so that output channels sV to sV + V - 1 have the same columns; 1 where they differ.  `transpose` has
// the input channels as its rows and (n * taps + tap) as its columns.
int64_t strip_columns(const Index& transpose, int64_t taps);

// The strips, cut by input channels into `parts` of about equal work, as the scatter kernel reads them.
template <typename T>
class ScatterStrips {
 public:
  // table[c * taps + tap] is the offset of the line that an entry adds to; entries that fill up a group add
  // zeros to `spare`.
  ScatterStrips(const Index& transpose, const T* values, int64_t strip, const std::vector<int32_t>& table,
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
