#include "scatter.h"

#include <algorithm>

namespace fedsparse {
namespace {

// Entries of channel c, from `at` on, of one output channel: where they end.
int32_t end_of_row(const Index& transpose, int32_t at, int64_t c, int64_t taps) {
  const int64_t n = transpose.cols[at] / taps;
  while (at < transpose.starts[c + 1] && transpose.cols[at] / taps == n) ++at;
  return at;
}

// Whether each strip of `rows` output channels has the same taps of channel c.
bool is_strips(const Index& transpose, int64_t c, int64_t rows, int64_t taps) {
  int32_t at = transpose.starts[c];
  while (at < transpose.starts[c + 1]) {
    const int64_t first = transpose.cols[at] / taps;
    const int32_t count = end_of_row(transpose, at, c, taps) - at;
    if (first % rows != 0 || transpose.starts[c + 1] - at < count * rows) return false;
    for (int64_t r = 1; r < rows; ++r)
      for (int32_t e = 0; e < count; ++e)
        if (transpose.cols[at + r * count + e] != transpose.cols[at + e] + r * taps) return false;
    at += static_cast<int32_t>(count * rows);
    if (at < transpose.starts[c + 1] && transpose.cols[at] / taps < first + rows) return false;
  }
  return true;
}

}  // namespace

int64_t strip_columns(const Index& transpose, int64_t taps) {
  constexpr int64_t kLongest = 32;
  const int64_t outputs = transpose.width / taps;
  int64_t found = 1;
  if (transpose.nnz == 0) return 1;
  for (int64_t rows = kQuad; rows <= kLongest && outputs % rows == 0; rows *= 2) {
    for (int64_t c = 0; c < transpose.rows; ++c)
      if (!is_strips(transpose, c, rows, taps)) return found;
    found = rows;
  }
  return found;
}

template <typename T>
ScatterStrips<T>::ScatterStrips(const Index& transpose, const T* values, int64_t strip,
                                const std::vector<int32_t>& table, int64_t spare, int64_t parts)
    : rows_(strip), bounds_(equal_work(transpose, parts)) {
  const int64_t taps = static_cast<int64_t>(table.size()) / transpose.rows, per_strip = taps * rows_;
  const int64_t group = strip_kernels<T>().scatter_entries;
  strips_ = transpose.width / per_strip;
  // How many entries each strip has in each part, filled up to whole groups.
  const int64_t slots = strips_ + 1;
  starts_.assign(this->parts() * slots, 0);
  int32_t total = 0;
  for (int64_t part = 0; part < this->parts(); ++part) {
    int32_t* const starts = starts_.data() + part * slots;
    for (int32_t j = transpose.starts[bounds_[part]]; j < transpose.starts[bounds_[part + 1]]; ++j)
      ++starts[transpose.cols[j] / per_strip + 1];
    starts[0] = total;
    for (int64_t s = 0; s < strips_; ++s) {
      const int64_t entries = starts[s + 1] / rows_;
      starts[s + 1] = starts[s] + static_cast<int32_t>((entries + group - 1) / group * group);
    }
    total = starts[strips_];
  }
  const int64_t words = total * rows_ * static_cast<int64_t>(sizeof(T) / sizeof(int32_t));
  offsets_ = torch::stable::new_empty(transpose.owner[0], {total});
  packed_ = torch::stable::new_zeros(transpose.owner[0], {words});
  int32_t* const offsets = out_ptr<int32_t>(offsets_);
  T* const packed = out_ptr<T>(packed_);
  std::fill(offsets, offsets + total, static_cast<int32_t>(spare));
  std::vector<int32_t> next(strips_);
  for (int64_t part = 0; part < this->parts(); ++part) {
    std::copy_n(starts_.begin() + part * slots, strips_, next.begin());
    for (int64_t c = bounds_[part]; c < bounds_[part + 1]; ++c)
      for (int32_t j = transpose.starts[c]; j < transpose.starts[c + 1];) {
        const int64_t s = transpose.cols[j] / per_strip;
        const int32_t count = end_of_row(transpose, j, c, taps) - j;
        for (int32_t k = 0; k < count; ++k) {
          const int32_t e = next[s] + k;
          offsets[e] = table[c * taps + transpose.cols[j + k] % taps];
          T* const weights = packed + (e / group * rows_) * group + e % group;
          for (int64_t r = 0; r < rows_; ++r) weights[r * group] = values[transpose.perm[j + r * count + k]];
        }
        next[s] += count;
        j += static_cast<int32_t>(count * rows_);
      }
  }
}

template <typename T>
void ScatterStrips<T>::run(const Scatter<T>& s, int64_t part) const {
  const Strips strips{rows_, starts_.data() + part * (strips_ + 1), in_ptr<int32_t>(offsets_)};
  strip_kernels<T>().scatter(s, strips, in_ptr<T>(packed_), strips_);
}

template class ScatterStrips<float>;
template class ScatterStrips<double>;

}  // namespace fedsparse
