// The strips of a weight in bfloat16, cut into units as the tile kernels read them.
#pragma once

#include <vector>

#include "amx.h"
#include "lists.h"

namespace fedsparse {

// Columns of the weight, [begin, end).
struct ColumnRange {
  int64_t begin, end;
};

class UnitStrips {
 public:
  // Entries of columns in `range`, `unit` of them a unit; table[col] is the offset of the line of column
  // `col`. RuntimeError where the rows are no strips of 16 or 32.
  UnitStrips(const char* op, const Index& index, const std::vector<int32_t>& table, ColumnRange range,
             int64_t unit);

  TileStrips view() const { return {rows_, starts_.data(), offsets_.data(), units_.data()}; }
  int64_t strips() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t rows() const { return rows_; }
  int64_t units() const { return units_.back(); }

  // Calls body(strip, row of the strip, entry of the strip, position of that weight among the values).
  template <typename Body>
  void each_weight(const Index& index, const Body& body) const {
    for (int64_t s = 0; s < strips(); ++s)
      for (int64_t row = 0; row < rows_; ++row)
        for (int64_t e = 0; e < starts_[s + 1] - starts_[s]; ++e)
          body(s, row, e, index.first(s * rows_ + row) + skipped_[s] + e);
  }
  int64_t unit(int64_t strip) const { return units_[strip]; }

 private:
  int64_t rows_;
  std::vector<int32_t> starts_, offsets_, units_;
  std::vector<int64_t> skipped_;  // entries of each strip before the range
};

}  // namespace fedsparse
