#include "amx_strips.h"

#include <algorithm>

namespace fedsparse {

UnitStrips::UnitStrips(const char* op, const Index& index, const std::vector<int32_t>& table,
                       ColumnRange range, int64_t unit)
    : rows_(index.strip), starts_{0}, units_{0} {
  require(rows_ == kSide || rows_ == 2 * kSide, op,
          ": bfloat16 needs masks in which 16 or 32 output channels share their columns.");
  for (int64_t s = 0; s < index.rows / rows_; ++s) {
    const int32_t *const cols = index.cols(s * rows_), *const end = cols + index.count(s * rows_);
    const int32_t *const first = std::lower_bound(cols, end, range.begin), *const last = std::lower_bound(
                                                                               first, end, range.end);
    for (const int32_t* col = first; col < last; ++col) offsets_.push_back(table[*col]);
    skipped_.push_back(first - cols);
    starts_.push_back(static_cast<int32_t>(offsets_.size()));
    units_.push_back(static_cast<int32_t>(units_.back() + (last - first + unit - 1) / unit));
  }
}

}  // namespace fedsparse
