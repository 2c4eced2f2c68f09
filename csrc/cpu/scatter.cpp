#include "scatter.h"

#include <algorithm>

namespace fedsparse {
namespace {

// Bounds of the runs of channels that have about equally many entries.
std::vector<int64_t> channel_bounds(const Index& index, int64_t channels, int64_t parts) {
  std::vector<int32_t> starts(channels + 1, 0);
  const int64_t taps = index.width / channels;
  for (int64_t s = 0; s < index.rows; s += index.strip)
    for (int64_t e = 0; e < index.count(s); ++e) ++starts[index.cols(s)[e] / taps + 1];
  for (int64_t c = 0; c < channels; ++c) starts[c + 1] += starts[c];
  Index by_channel{{}, channels, starts[channels], 1, 1, index.rows * taps, starts.data(), nullptr, nullptr};
  return equal_work(by_channel, parts);
}

}  // namespace

template <typename T>
ScatterStrips<T>::ScatterStrips(const Index& index, const T* values, const std::vector<int32_t>& table,
                                int64_t channels, int64_t spare, int64_t parts)
    : rows_(index.strip),
      strips_(index.rows / index.strip),
      bounds_(parts == 1 ? std::vector<int64_t>{0, channels} : channel_bounds(index, channels, parts)) {
  const int64_t taps = index.width / channels, group = strip_kernels<T>().scatter_entries;
  const int64_t slots = strips_ + 1;
  // Entries of a strip that belong to channels before the first of a part.
  const auto before = [&](int64_t strip, int64_t part) {
    const int32_t *const cols = index.cols(strip * rows_), *const end = cols + index.count(strip * rows_);
    return std::lower_bound(cols, end, bounds_[part] * taps) - cols;
  };
  // Where each strip's entries of each part begin, filled up to whole groups.
  starts_.assign(this->parts() * slots, 0);
  int64_t total = 0;
  for (int64_t part = 0; part < this->parts(); ++part)
    for (int64_t s = 0; s <= strips_; ++s) {
      starts_[part * slots + s] = static_cast<int32_t>(total);
      if (s < strips_) total += (before(s, part + 1) - before(s, part) + group - 1) / group * group;
    }
  offsets_ = torch::stable::new_empty(index.owner[0], {total});
  packed_ = torch::stable::new_zeros(index.owner[0],
                                     {total * rows_ * static_cast<int64_t>(sizeof(T) / sizeof(int32_t))});
  int32_t* const offsets = out_ptr<int32_t>(offsets_);
  T* const packed = out_ptr<T>(packed_);
  std::fill(offsets, offsets + total, static_cast<int32_t>(spare));
  for (int64_t part = 0; part < this->parts(); ++part)
    for (int64_t s = 0; s < strips_; ++s) {
      const int32_t* const cols = index.cols(s * rows_);
      int64_t to = starts_[part * slots + s];
      for (int64_t e = before(s, part); e < before(s, part + 1); ++e, ++to) {
        offsets[to] = table[cols[e]];
        T* const weights = packed + to / group * rows_ * group + to % group;
        for (int64_t r = 0; r < rows_; ++r) weights[r * group] = values[index.first(s * rows_ + r) + e];
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
