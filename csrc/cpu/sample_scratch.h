// Where the sample kernels keep one line of partial sums for each active weight, one piece a thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lists.h"

namespace fedsparse {

template <typename T>
class SampleScratch {
 public:
  SampleScratch(const Tensor& like, const Index& index) : lines_(std::min(kLines, index.nnz)) {
    for (int64_t row = 0; row < index.rows; ++row)
      lines_ = std::max<int64_t>(lines_, index.starts[row + 1] - index.starts[row]);
    memory_ = torch::stable::new_empty(like, {torch::stable::get_num_threads() * lines_ * kLanes<T>});
  }

  int64_t lines() const { return lines_; }

  Sample<T> given(Sample<T> sample, int64_t part) const {
    sample.scratch = out_ptr<T>(memory_) + part * lines_ * kLanes<T>;
    return sample;
  }

 private:
  static constexpr int64_t kLines = 4096;  // 256 KiB: stays in the second-level cache
  int64_t lines_;
  Tensor memory_;
};

}  // namespace fedsparse
